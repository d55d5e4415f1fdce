"""SARIF 2.1.0, for code-scanning viewers: one run a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import quote

from auditor.finding import Finding, Severity
from reports import rulebook, summary
from reports.escape import markdown, short, visible
from reports.jsontext import Json
from reports.report import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
SHOWN = 5000  # viewers take no more results of one run
_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(reports: Sequence[Report]) -> str:
    """The log as JSON text."""
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(r) for r in reports]}
    return json.dumps(log, indent=2) + "\n"


def fingerprint(finding: Finding) -> str:
    """What names a finding from one scan to the next: a hash of its rule and tensor."""
    return hashlib.sha256(f"{finding.code}\0{finding.tensor}".encode("utf-8", "surrogatepass")).hexdigest()


def _run(report: Report) -> Json:
    audit = report.audit
    shown = report.shown[:SHOWN]  # sorted, so the severest stay
    codes = sorted({f.code for f in shown})
    titles = {f.code: f for f in reversed(shown)}
    return {
        "tool": {"driver": {"name": "checkpoint-audit", "rules": [_rule(titles[code]) for code in codes]}},
        "automationDetails": {"id": f"audit/{visible(audit.checkpoint)}/"},
        "invocations": [
            {
                "executionSuccessful": not (audit.errors or report.unreadable),
                "toolExecutionNotifications": _notices(report),
            }
        ],
        "results": [_result(f, codes.index(f.code), audit.checkpoint) for f in shown],
        "columnKind": "unicodeCodePoints",
        "properties": {"summary": summary.verdict(report), "coverage": summary.coverage(audit)},
    }


def _notices(report: Report) -> list[Json]:
    audit = report.audit
    notices: list[Json] = [_notice("note", f"settings: {line}") for line in summary.settings(report.terms)]
    notices += [_notice("error", f"fault of the tool: {line}") for line in summary.faults(audit)]
    level = "error" if report.unreadable else "warning"
    notices += [_notice(level, f"not checked: {line}") for line in summary.skipped(audit)]
    if len(report.shown) > SHOWN:
        text = f"{len(report.shown)} findings, of which the {SHOWN} severest are listed; other formats list all"
        notices.append(_notice("warning", text))
    return notices


def _notice(level: str, text: str) -> Json:
    return {"level": level, "message": {"text": text}}


def _rule(example: Finding) -> Json:
    rule = rulebook.known(example.code)
    title = visible(example.title)
    described: dict[str, Json] = {
        "id": example.code,
        "name": "".join(word.capitalize() for word in title.split() if word.isalnum()) or example.code,
        "shortDescription": {"text": title},
        "defaultConfiguration": {"level": _LEVEL[rule.severity if rule else example.severity]},
    }
    if rule:
        described["fullDescription"] = {"text": rulebook.first_line(rule.code)}
        described["help"] = {"text": rule.page(), "markdown": rule.page()}
    return described


def _result(finding: Finding, rule_index: int, checkpoint: str) -> Json:
    text = f"{short(finding.tensor)}: {visible(finding.message)}"
    return {
        "ruleId": finding.code,
        "ruleIndex": rule_index,
        "level": _LEVEL[finding.severity],
        "message": {"text": text, "markdown": markdown(text)},
        "locations": [_location(finding, checkpoint)],
        "partialFingerprints": {"ruleAndTensor/v1": fingerprint(finding)},
        "occurrenceCount": max(1, finding.count),
        "properties": {
            "related": list(finding.related),
            "places": [{"index": list(p.index), "offset": p.offset, "old": p.old} for p in finding.places],
            "fix": {"safety": finding.fix.safety.label, "note": finding.fix.note} if finding.fix else None,
        },
    }


def _location(finding: Finding, checkpoint: str) -> Json:
    physical: dict[str, Json] = {"artifactLocation": {"uri": _uri(checkpoint, finding.shard)}}
    if finding.places:
        place = finding.places[0]
        physical["region"] = {"byteOffset": place.offset, "byteLength": max(1, (len(place.old) - 2) // 2)}
    return {
        "physicalLocation": physical,
        "logicalLocations": [{"fullyQualifiedName": visible(finding.tensor), "kind": "member"}],
    }


def _uri(checkpoint: str, shard: str) -> str:
    """A relative reference for a relative checkpoint, a file URI for an absolute one."""
    folder = PurePosixPath(checkpoint)
    folder = folder.parent if folder.suffix in {".safetensors", ".json"} else folder
    path = quote(_bytes(str(folder / shard)))
    return f"file://{path}" if folder.is_absolute() else path


def _bytes(path: str) -> bytes:
    """The bytes of a file's name as the system has them; of a name that no file can have, those that tell it best."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogatepass")
