"""What is shown of an audit, and the exit code it deserves."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from auditor.audit import Audit, Depth
from auditor.finding import Finding, Safety, Severity, Skipped


class Exit(enum.IntEnum):
    """Exit codes of every command."""

    CLEAN = 0
    FINDINGS = 1  # at or above the threshold
    USAGE = 2
    UNCHECKED = 3  # something could not be read or checked


class Terms(NamedTuple):
    """What settings and options leave out of a report, so that it can say so.

    ``by``: the settings file and "options", as far as either had a part; ``off``: codes of the rules that did not run;
    ``least``: the least severity that is listed; ``output``, ``baseline``: files that the settings file names.
    """

    by: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    least: str = Severity.INFO.label
    output: str = ""
    baseline: str = ""


EVERYTHING = Terms()  # nothing is left out


class Report(NamedTuple):
    """An audit and the choice of what to show of it.

    ``live``: findings that nobody has excused; they decide the exit code.  ``shown``: those of them that
    are severe enough to be listed.  ``ignored``: excused by the settings; ``known``: by the baseline.
    ``unreadable``: why nothing could be read at all, else "".  ``fail_on``: the exit code's threshold.
    """

    audit: Audit
    live: tuple[Finding, ...]
    shown: tuple[Finding, ...]
    ignored: int = 0
    known: int = 0
    unreadable: str = ""
    fail_on: Severity | None = Severity.ERROR
    terms: Terms = EVERYTHING

    @property
    def below(self) -> int:
        """Findings that count but are not severe enough to be listed."""
        return len(self.live) - len(self.shown)

    @property
    def failing(self) -> bool:
        """Whether a finding reaches the threshold, listed or not."""
        return self.fail_on is not None and any(f.severity >= self.fail_on for f in self.live)

    def exit_code(self, *, strict: bool = False) -> Exit:
        """3 when something could not be read or checked, else 1 at or above the threshold, else 0."""
        if self.unreadable or self.audit.errors or (strict and self.audit.skipped):
            return Exit.UNCHECKED
        return Exit.FINDINGS if self.failing else Exit.CLEAN


@dataclass(frozen=True)
class Choice:
    """What to show and where to fail; the default shows all and fails on errors."""

    least: Severity = Severity.INFO
    fail_on: Severity | None = Severity.ERROR
    ignored: Callable[[Finding], bool] = field(default=lambda finding: False)
    known: Callable[[Finding], bool] = field(default=lambda finding: False)
    terms: Terms = EVERYTHING

    def report(self, audit: Audit) -> Report:
        """The audit seen through this choice."""
        kept = [f for f in audit.findings if not self.ignored(f)]
        live = tuple(f for f in kept if not self.known(f))
        return Report(
            audit=audit,
            live=live,
            shown=tuple(f for f in live if f.severity >= self.least),
            ignored=len(audit.findings) - len(kept),
            known=len(kept) - len(live),
            fail_on=self.fail_on,
            terms=self.terms,
        )


def unreadable(checkpoint: str, reason: str, depth: Depth, fail_on: Severity | None = Severity.ERROR) -> Report:
    """The report of a checkpoint of which nothing could be read: one skipped entry, no findings."""
    reason = reason.removeprefix(f"{checkpoint}: ")
    skipped = (Skipped(checkpoint, reason),)
    audit = Audit(checkpoint, depth, (), (), 0, 0, 0, 0, (), skipped, ())
    return Report(audit, (), (), unreadable=reason, fail_on=fail_on)


def worst(codes: Iterable[Exit]) -> Exit:
    """The exit code of several checkpoints together."""
    return max(codes, default=Exit.CLEAN)


def fixable(findings: Sequence[Finding]) -> dict[Safety, int]:
    """How many findings have a remedy, by its safety; every safety is present."""
    counts = dict.fromkeys(Safety, 0)
    for finding in findings:
        if finding.fix is not None:
            counts[finding.fix.safety] += 1
    return counts
