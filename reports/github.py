"""Workflow commands: findings as annotations of a GitHub Actions run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from auditor.finding import Finding, Severity
from reports import summary
from reports.escape import short, workflow, workflow_value
from reports.report import Report

_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def render(reports: Sequence[Report]) -> str:
    """One command a finding and a skipped tensor's reason, then the verdict as an ordinary line."""
    return "".join(line + "\n" for report in reports for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    audit = report.audit
    for finding in report.shown:
        yield _command(_LEVEL[finding.severity], _title(finding), _text(finding), _file(audit.checkpoint, finding))
    if report.unreadable:
        yield _command("error", "unreadable", f"{short(audit.checkpoint)}: {report.unreadable}")
    else:
        for line in summary.skipped(audit):
            yield _command("warning", "not checked", line)
    for line in summary.faults(audit):
        yield _command("error", "fault of the tool", line)
    # The space keeps a name that starts with :: from being a command.
    yield f" {short(audit.checkpoint)}: {summary.verdict(report)}"


def _command(level: str, title: str, text: str, file: str = "") -> str:
    where = f"file={workflow_value(file)}," if file else ""
    return f"::{level} {where}title={workflow_value(title)}::{workflow(text)}"


def _title(finding: Finding) -> str:
    return f"{finding.code} {finding.title}"


def _text(finding: Finding) -> str:
    return f"{short(finding.tensor)}: {finding.message}"


def _file(checkpoint: str, finding: Finding) -> str:
    folder = PurePosixPath(checkpoint)
    return str((folder.parent if folder.suffix in {".safetensors", ".json"} else folder) / finding.shard)
