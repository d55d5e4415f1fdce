from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given, settings

from auditor.audit import Depth
from auditor.finding import Severity
from reports import junit
from reports.escape import short, visible
from reports.report import unreadable
from tests.reports.audits import AUDITS, CLEAN, FAULTY, FULL, NAN, seen


def parsed(*reports) -> ET.Element:
    return ET.fromstring(junit.render(list(reports)))


def test_failures_are_the_findings_at_the_threshold():
    root = parsed(seen(FULL, fail_on=Severity.WARNING))
    failures = {
        case.get("name"): case.find("failure") for case in root.iter("testcase") if case.find("failure") is not None
    }
    assert list(failures) == [f.tensor for f in FULL.findings if f.severity >= Severity.WARNING]
    failure = failures[NAN.tensor]
    assert failure.get("message") == NAN.message
    assert "[0, 5] at byte 123456, was 0x7F" in failure.text
    assert (root.get("tests"), root.get("failures"), root.get("skipped"), root.get("errors")) == ("8", "3", "3", "0")


def test_a_clean_checkpoint_is_one_passed_test():
    root = parsed(seen(CLEAN))
    assert (root.get("tests"), root.get("failures")) == ("1", "0")
    assert "1 034 of 1 034 tensors" in root.findtext(".//system-out")


def test_what_could_not_be_checked_is_an_error():
    assert parsed(seen(FAULTY)).get("errors") == "1"
    gone = parsed(unreadable("x", "no such folder", Depth.SCALES))
    assert gone.get("errors") == "1"
    assert gone.find(".//error").get("message") == "no such folder"


@settings(max_examples=100)
@given(AUDITS)
def test_any_text_makes_well_formed_xml(audit):
    suite = parsed(seen(audit)).find("testsuite")
    assert suite.get("name") == visible(audit.checkpoint)
    names = [case.get("name") for case in suite.iter("testcase")][1:]
    assert names[: len(audit.findings)] == [short(f.tensor) for f in audit.findings]
    for key, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(key)) == len(list(suite.iter(tag)))
