"""Reports for other programs: one JSON document, or one JSON object a line.

Fields may be added, never renamed.  Names are exact, not escaped for reading: everything outside ASCII is
written as \\uXXXX, so a terminal is safe too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from auditor.finding import Finding, Severity
from reports.jsontext import Json, pretty
from reports.report import Report, Terms, fixable

SCHEMA_VERSION = 1


def document(report: Report) -> dict[str, Json]:
    """One checkpoint's report as a JSON object, schema version 1."""
    audit = report.audit
    return {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": audit.checkpoint,
        "formats": list(audit.formats),
        "bytes_held": audit.bytes_held,
        "bytes_read": audit.bytes_read,
        "tensors": audit.tensor_count,
        "findings": [finding(f) for f in report.shown],
        "skipped": [{"tensor": s.tensor, "reason": s.reason} for s in audit.skipped],
        "summary": summary(report),
    }


def finding(f: Finding) -> dict[str, Json]:
    """One finding as a JSON object."""
    return {
        "code": f.code,
        "severity": f.severity.label,
        "tensor": f.tensor,
        "shard": f.shard,
        "message": f.message,
        "count": f.count,
        "places": [{"index": list(p.index), "offset": p.offset, "old": p.old} for p in f.places],
        "related": list(f.related),
        "fix": {"safety": f.fix.safety.label, "note": f.fix.note} if f.fix else None,
        "title": f.title,
        "layer": f.layer,
    }


def summary(report: Report) -> dict[str, Json]:
    """Counts over all live findings, listed or not, and what was not looked at."""
    audit = report.audit
    return {
        "depth": audit.depth.label,
        "declared": audit.declared,
        "shards": list(audit.shards),
        "checked": audit.checked,
        "skipped": audit.tensors_skipped,
        "unread": dict(sorted(audit.unread.items())),
        "findings": {s.label: sum(f.severity is s for f in report.live) for s in reversed(Severity)},
        "fixable": {safety.label: n for safety, n in fixable(report.live).items()},
        "hidden": {"min_severity": report.below, "baseline": report.known, "ignored": report.ignored},
        "settings": settings(report.terms),
        "internal_errors": [{"rule": e.rule, "where": e.where, "error": e.error} for e in audit.errors],
        "unreadable": report.unreadable or None,
    }


def settings(terms: Terms) -> dict[str, Json]:
    """What settings and options left out, for scans and repairs."""
    return {
        "from": list(terms.by),
        "rules_off": list(terms.off),
        "min_severity": terms.least,
        "output": terms.output or None,
        "baseline": terms.baseline or None,
    }


def render(reports: Sequence[Report]) -> str:
    """One object for one checkpoint, an array of objects for several."""
    documents = [document(r) for r in reports]
    return pretty(documents[0]) if len(documents) == 1 else pretty(documents, levels=3)


def render_lines(reports: Sequence[Report]) -> str:
    """One object a line, told apart by ``type``: finding, skipped, and at a checkpoint's end summary."""
    lines: list[dict[str, Json]] = []
    for report in reports:
        checkpoint = report.audit.checkpoint
        head: dict[str, Json] = {"schema_version": SCHEMA_VERSION, "checkpoint": checkpoint}
        lines += [{"type": "finding", **head, **finding(f)} for f in report.shown]
        lines += [{"type": "skipped", **head, "tensor": s.tensor, "reason": s.reason} for s in report.audit.skipped]
        totals = {k: v for k, v in document(report).items() if k not in {"findings", "skipped", "summary"}}
        lines.append({"type": "summary", **totals, **summary(report)})
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
