"""Tables for people: `table` (a line or two a finding), `full` (everything known), `names` (nothing else).

The same lines serve a terminal, a pipe and a file; `reports.terminal` adds the colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from auditor.finding import Finding
from reports import rulebook, summary
from reports.escape import short, visible
from reports.layout import Line, Span, cells, fold, fold_name, labelled, pad
from reports.quantity import number
from reports.report import Report

WIDE = 100  # columns from which name and message stand side by side
ROWS_SHOWN = 50  # of one rule, on a terminal
_SEVERITY = 7  # width of "warning"


def table(reports: Sequence[Report], width: int | None = None, limit: int | None = None) -> Iterator[Line]:
    """One row a finding, then what was read; ``limit`` rows of one rule at most, the rest is counted.

    ``width``: columns to fold to; None keeps each finding on one line, for a pipe.
    """
    for at, report in enumerate(reports):
        if at:
            yield ()
        if len(reports) > 1:
            yield from _name(report.audit.checkpoint, width)
        if report.shown:
            rows = _stacked if width is not None and width < WIDE else _columns
            yield from rows(report.shown, width, limit)
            yield ()
        yield from footer(report, width)


def full(reports: Sequence[Report], width: int | None = None) -> Iterator[Line]:
    """Everything known of each finding, below its rule and what the rule means."""
    for at, report in enumerate(reports):
        if at:
            yield ()
        yield from _name(report.audit.checkpoint, width)
        yield ()
        last = ""
        for finding in report.shown:
            if finding.code != last:
                last = finding.code
                yield from _heading(finding, width)
            yield from _whole(finding, width)
            yield ()
        yield from footer(report, width, every=True)


def names(reports: Sequence[Report]) -> Iterator[Line]:
    """The names of the tensors with findings, each once; with several checkpoints theirs stands before."""
    for report in reports:
        before = f"{visible(report.audit.checkpoint)}: " if len(reports) > 1 else ""
        for name in dict.fromkeys(f.tensor for f in report.shown):
            yield (Span(before + visible(name)),)


def footer(report: Report, width: int | None, *, every: bool = False) -> Iterator[Line]:
    """Verdict, repairs, formats, what was read, and what was not; ``every`` lists each skipped tensor."""
    audit = report.audit
    worst = max((f.severity for f in report.live), default=None)
    for part in fold(summary.verdict(report), width):
        yield (Span(part, worst.label if worst else "strong"),)
    for part in fold(summary.repairs(report), width):
        if part:
            yield (Span(part),)
    if not report.unreadable:
        yield from labelled("Formats", [summary.formats(audit)], width)
        yield from labelled("Declared", summary.declared(audit), width)
        yield from labelled("Checked", [summary.coverage(audit)], width)
        yield from labelled("Unread", summary.unread(audit), width, "faint")
    yield from labelled("Settings", summary.settings(report.terms), width, "warning")
    skipped = [f"{short(s.tensor)}: {visible(s.reason)}" for s in audit.skipped] if every else summary.skipped(audit)
    yield from labelled("Skipped", skipped, width, "warning")
    yield from labelled("Fault", summary.faults(audit), width, "error")
    if audit.errors:
        yield from labelled("", ["A fault of this tool, not of the checkpoint: please report it."], width)


def _name(checkpoint: str, width: int | None) -> Iterator[Line]:
    yield from ((Span(part, "strong"),) for part in fold_name(short(checkpoint), width))


def _capped(findings: Sequence[Finding], limit: int | None) -> Iterator[Finding | str]:
    """The findings, ``limit`` of each rule; after a rule's last one, a line that counts the others."""
    total, seen = Counter(f.code for f in findings), Counter[str]()
    for finding in findings:
        seen[finding.code] += 1
        if limit is None or seen[finding.code] <= limit:
            yield finding
        elif seen[finding.code] == total[finding.code]:
            yield f"... and {number(total[finding.code] - limit)} more {finding.code} (--format full lists all)"


def _mark(finding: Finding) -> Span:
    return Span("[*]" if finding.fix else "   ", "fix")


def _message(finding: Finding) -> str:
    return visible(finding.message)


def _columns(findings: Sequence[Finding], width: int | None, limit: int | None) -> Iterator[Line]:
    """Side by side: severity, code, mark, name, message; both texts fold in their column."""
    code = max(len("CODE"), *(cells(f.code) for f in findings))
    rows = list(_capped(findings, limit))
    listed = [r for r in rows if isinstance(r, Finding)]
    longest = max(len("TENSOR"), *(cells(short(f.tensor)) for f in listed))
    left: int | None = None
    right: int | None = None
    if width is not None:
        free = width - (_SEVERITY + code + 3 + 8)
        said = max(len("FINDING"), *(cells(_message(f)) for f in listed))
        left = min(longest, max(free * 11 // 20, free - said))
        right = free - left
    head = (pad("", _SEVERITY), pad("CODE", code), "FIX", pad("TENSOR", left or longest), "FINDING")
    yield tuple(Span(text + "  ", "faint") for text in head)
    for row in rows:
        if isinstance(row, str):
            yield (Span(pad("", _SEVERITY + 2)), Span(row, "faint"))
            continue
        name, said_lines = fold_name(short(row.tensor), left), fold(_message(row), right)
        for at in range(max(len(name), len(said_lines))):
            first = at == 0
            yield (
                Span(pad(row.severity.label if first else "", _SEVERITY) + "  ", row.severity.label),
                Span(pad(row.code if first else "", code) + "  ", "strong"),
                _mark(row) if first else Span("   "),
                Span("  " + pad(name[at] if at < len(name) else "", left or longest) + "  ", "name"),
                Span(said_lines[at] if at < len(said_lines) else ""),
            )


def _stacked(findings: Sequence[Finding], width: int | None, limit: int | None) -> Iterator[Line]:
    """For narrow terminals: severity, code, mark and name, the message below."""
    code = max(cells(f.code) for f in findings)
    indent = Span("    ")
    inner = max(16, (width or WIDE) - 4)
    for row in _capped(findings, limit):
        if isinstance(row, str):
            yield indent, Span(row, "faint")
            continue
        head = (
            Span(pad(row.severity.label, _SEVERITY) + " ", row.severity.label),
            Span(pad(row.code, code) + " ", "strong"),
            _mark(row),
        )
        name = short(row.tensor)
        if _SEVERITY + code + 6 + cells(name) <= (width or WIDE):
            yield (*head, Span(" " + name, "name"))
        else:
            yield head
            yield from ((indent, Span(part, "name")) for part in fold_name(name, inner))
        yield from ((indent, Span(part)) for part in fold(_message(row), inner))


def _heading(finding: Finding, width: int | None) -> Iterator[Line]:
    yield from ((Span(part, "strong"),) for part in fold(f"{finding.code} {visible(finding.title)}", width))
    for section in ("Why it matters", "What engines do"):
        if text := rulebook.paragraph(finding.code, section):
            yield from ((Span(part, "faint"),) for part in fold(text, width))
    yield ()


def _whole(finding: Finding, width: int | None) -> Iterator[Line]:
    """One finding with every place, folded under labels."""
    label = finding.severity.label
    first = True
    for part in fold_name(visible(finding.tensor), width - 12 if width else None):
        yield Span(pad(label if first else "", _SEVERITY) + " ", label), _mark_if(finding, first), Span(part, "name")
        first = False
    yield from _field("", [visible(finding.message)], width)
    yield from _field("shard", [visible(finding.shard)] if finding.shard != finding.tensor else [], width)
    shown = [
        (f"{list(p.index)} " if p.index else "") + f"at byte {p.offset}" + (f", was {visible(p.old)}" if p.old else "")
        for p in finding.places
    ]
    if shown and finding.count > len(shown):
        shown.append(f"... and {number(finding.count - len(shown))} more")
    yield from _field("places", shown, width)
    yield from _field("related", [visible(name) for name in finding.related], width)
    if finding.fix:
        yield from _field("fix", [f"{finding.fix.safety.label}: {visible(finding.fix.note)}"], width)


def _mark_if(finding: Finding, first: bool) -> Span:
    return Span(_mark(finding).text + " ", "fix") if first else Span("    ")


def _field(label: str, texts: list[str], width: int | None) -> Iterator[Line]:
    for line in labelled(label, texts, width - 4 if width else None, indent=8):
        yield Span("    "), *line
