"""FIL119."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Severity


class InterruptedRepair(FileRule):
    """A repair of these files was interrupted: some bytes are old, some new.

    ## What it checks
    The newest journal in the folder's .audit ends with the mark that says that every file was written.

    ## Why it matters
    Tensors that change together, global scales and the block scales under them, may have changed in part: every
    number is plausible, and the weights are wrong.  No other rule can see that.  A repair that is at work at this
    moment looks the same.

    ## What engines do
    They load the files as they are and answer with the wrong weights.

    ## Fix
    `audit undo` settles it: every file becomes what it was before.  So does `audit repair --write`, which then plans
    anew.  Copies, casts and comparisons are refused until then.

    ## References
    docs/repair-journal.md
    """

    code, title, severity = "FIL119", "interrupted repair", Severity.ERROR

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding, on the journal."""
        journal = ctx.checkpoint.interrupted
        if journal:
            message = "a repair did not end (or is at work): files may hold old and new bytes; `audit undo` settles it"
            yield self.file_finding(journal, message)
