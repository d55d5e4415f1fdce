"""A report as GitHub-flavoured Markdown, for an issue or a model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports import summary
from reports.escape import code, markdown, short
from reports.quantity import number
from reports.report import Report


def render(reports: Sequence[Report]) -> str:
    """A heading, the verdict and a table of findings for each checkpoint."""
    return "\n".join(line for report in reports for line in _section(report))


def _section(report: Report) -> Iterator[str]:
    audit = report.audit
    yield f"## Audit of {code(short(audit.checkpoint))}\n"
    yield f"**{markdown(summary.verdict(report))}**\n"
    if report.shown:
        yield "| Severity | Code | Tensor | Finding | Count | Fix |"
        yield "| --- | --- | --- | --- | ---: | --- |"
        for f in report.shown:
            fix = f"{f.fix.safety.label}: {markdown(f.fix.note)}" if f.fix else ""
            cells = (f.severity.label, f.code, code(short(f.tensor)), markdown(f.message), number(f.count), fix)
            yield f"| {' | '.join(cells)} |"
        yield ""
    if repairs := summary.repairs(report):
        yield f"- {markdown(repairs)}"
    if not report.unreadable:
        yield f"- Formats: {markdown(summary.formats(audit))}"
        yield from (f"- Declared: {markdown(line)}" for line in summary.declared(audit))
        yield f"- Checked: {markdown(summary.coverage(audit))}"
    yield from (f"- Unread: {markdown(line)}" for line in summary.unread(audit))
    yield from (f"- Settings: {markdown(line)}" for line in summary.settings(report.terms))
    yield from (f"- Skipped: {markdown(line)}" for line in summary.skipped(audit))
    yield from (f"- Fault of the tool: {markdown(line)}" for line in summary.faults(audit))
    yield ""
