"""The closing lines that every report for people shares; each says one thing, all text is escaped."""

from __future__ import annotations

from collections import Counter

from auditor.audit import Audit
from auditor.finding import Safety, Severity
from reports.escape import short, visible
from reports.quantity import number, plural, share, size
from reports.report import Report, Terms, fixable

SKIPPED_NAMED = 10  # reasons named in a footer; a full report lists every tensor

_HOW = {
    Safety.RESTORED: "with --source",
    Safety.BOUNDED: "with --risk bounded",
    Safety.GUESS: "with --risk guess",
}


def verdict(report: Report) -> str:
    """Counts by severity, or that there is nothing; never calls sound what was not checked."""
    if report.unreadable:
        return "Nothing could be read."
    parts = [plural(n, s.label) for s in reversed(Severity) if (n := _count(report, s)) and s is not Severity.INFO]
    if info := _count(report, Severity.INFO):
        parts.append(f"{number(info)} info")
    hidden = _hidden(report)
    if parts:
        return ", ".join(parts) + (f" ({hidden})" if hidden else "")
    unsure = report.audit.skipped or report.audit.errors
    text = "No findings in what was checked" if unsure else "No findings"
    return f"{text} ({hidden})." if hidden else f"{text}."


def _count(report: Report, severity: Severity) -> int:
    return sum(f.severity is severity for f in report.live)


def _hidden(report: Report) -> str:
    parts = []
    if report.below:
        parts.append(f"{number(report.below)} below --min-severity")
    if report.known:
        parts.append(f"{number(report.known)} known from the baseline")
    if report.ignored:
        parts.append(f"{number(report.ignored)} ignored by the settings")
    return ", ".join(parts) + (" not shown" if parts else "")


def repairs(report: Report) -> str:
    """How many findings could be repaired and at what risk; "" when there are none."""
    counts = fixable(report.live)
    if not any(counts.values()):
        return f"0 of {number(len(report.live))} fixable" if report.live else ""
    exact = f"[*] {number(counts[Safety.EXACT])} of {number(len(report.live))} fixable exactly"
    return ", ".join([exact, *(f"{number(counts[s])} more {how}" for s, how in _HOW.items() if counts[s])])


def coverage(audit: Audit) -> str:
    """Tensors checked, and bytes read of bytes held."""
    part = share(audit.bytes_read, audit.bytes_held)
    tensors = f"{number(audit.checked)} of {plural(audit.tensor_count, 'tensor')}"
    return f"{tensors}; {size(audit.bytes_read)} of {size(audit.bytes_held)} read ({part}), depth {audit.depth.label}"


def formats(audit: Audit) -> str:
    """The formats that were recognised."""
    return ", ".join(short(f) for f in audit.formats) or "none recognised"


def declared(audit: Audit) -> list[str]:
    """What the configuration says, if it says anything."""
    return [visible(audit.declared)] if audit.declared else []


def unread(audit: Audit) -> list[str]:
    """What this depth leaves alone, one line per reason."""
    return [f"{plural(n, 'tensor')}: {short(why)}" for why, n in sorted(audit.unread.items()) if n]


def settings(terms: Terms) -> list[str]:
    """What settings and options left out, and the files that the settings name; in one line, if there is any."""
    parts = [f"{plural(len(terms.off), 'rule')} off"] if terms.off else []
    if terms.least != Severity.INFO.label:
        parts.append(f"nothing below {terms.least} listed")
    files = {"output": terms.output, "baseline": terms.baseline}
    parts += [f"{what} {visible(path)}" for what, path in files.items() if path]
    return [f"{', '.join(map(visible, terms.by))}: {', '.join(parts)}"] if parts else []


def skipped(audit: Audit) -> list[str]:
    """What could not be checked, one line per reason; a reason that holds one thing names it."""
    reasons = Counter(s.reason for s in audit.skipped)
    first = {s.reason: s.tensor for s in reversed(audit.skipped)}
    lines = []
    for reason, n in reasons.most_common(SKIPPED_NAMED):
        one = f"{short(first[reason])}: {visible(reason)}"
        lines.append(one if n == 1 else f"{plural(n, 'tensor')}: {visible(reason)} (first: {short(first[reason])})")
    if (rest := len(reasons) - SKIPPED_NAMED) > 0:
        lines.append(f"and for {plural(rest, 'further reason')}")
    return lines


def faults(audit: Audit) -> list[str]:
    """The rules that raised: faults of this tool."""
    return [f"{visible(e.rule)} at {short(e.where)}: {visible(e.error)}" for e in audit.errors]
