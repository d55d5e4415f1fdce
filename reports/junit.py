"""JUnit XML, for continuous integration that shows test results."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from auditor.finding import Finding
from reports import summary
from reports.escape import short, visible
from reports.report import Report


def render(reports: Sequence[Report]) -> str:
    """A test suite a checkpoint.

    A finding at or above the threshold is a failed test, one below it a passed test with output, a skipped
    tensor a skipped test, and what could not be read or checked an error; one more test says what was read.
    """
    root = ET.Element("testsuites", name="audit")
    for report in reports:
        root.append(_suite(report))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(report: Report) -> ET.Element:
    audit = report.audit
    suite = ET.Element("testsuite", name=visible(audit.checkpoint))
    case = _case(suite, "audit", "readable")
    _output(case, f"checked {summary.coverage(audit)}" if not report.unreadable else "")
    if report.unreadable:
        ET.SubElement(case, "error", type="unreadable", message=visible(report.unreadable))
    for finding in report.shown:
        _finding(suite, finding, report)
    for entry in audit.skipped if not report.unreadable else ():
        ET.SubElement(_case(suite, "skipped", entry.tensor), "skipped", message=visible(entry.reason))
    for fault in audit.errors:
        case = _case(suite, fault.rule, fault.where)
        ET.SubElement(case, "error", type="internal", message=visible(fault.error))
    tags = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite.set("tests", str(len(suite)))
    for key, tag in tags.items():
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    return suite


def _case(suite: ET.Element, group: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=visible(group), name=short(name))


def _finding(suite: ET.Element, finding: Finding, report: Report) -> None:
    case = _case(suite, f"{finding.code} {finding.title}", finding.tensor)
    if report.fail_on is None or finding.severity < report.fail_on:
        _output(case, f"{finding.severity.label}: {visible(finding.message)}")
        return
    failure = ET.SubElement(case, "failure", type=finding.severity.label, message=visible(finding.message))
    places = (f"{list(p.index)} at byte {p.offset}, was {visible(p.old)}" for p in finding.places)
    failure.text = "\n".join([f"shard: {visible(finding.shard)}", *places])


def _output(case: ET.Element, text: str) -> None:
    if text:
        ET.SubElement(case, "system-out").text = text
