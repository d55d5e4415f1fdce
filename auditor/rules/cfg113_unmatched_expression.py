"""CFG113."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.rule import CheckpointRule


class UnmatchedExpression(CheckpointRule):
    """A pattern in the configuration was not evaluated.

    ## What it checks
    Whether every entry of the ignore and exclude lists can be matched in time that grows with the names alone.
    Regular expressions are matched by an automaton, which knows no back-references, lookbehinds, flags or
    lookaheads beyond the start; over-long patterns and lists that cost too much are refused too.

    ## Why it matters
    Rules that compare names with the list (CFG103) stay silent rather than guess.

    ## What engines do
    They run the expression with a backtracking matcher, however long it takes.

    ## Fix
    Write the entry as plain names or a simpler expression.

    ## References
    compressed-tensors, utils/match.py
    """

    code, title, severity = "CFG113", "pattern not evaluated", Severity.INFO
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for the list."""
        declared = ctx.declared
        for layer in ctx.layers:
            declared.exclusion(layer.name)  # cost shows while names are matched
            if declared.matcher.refused:
                break
        refused = declared.matcher.refused
        if refused:
            number = min(refused)
            pattern = declared.exclude[number]
            message = f"{len(refused)} patterns were not evaluated: {pattern.text[:100]!r} ({refused[number]})"
            yield self.file_finding(pattern.file, message, count=len(refused))
