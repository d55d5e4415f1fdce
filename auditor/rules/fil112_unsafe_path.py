"""FIL112."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule, quoted
from auditor.finding import Finding, Severity


class UnsafePath(FileRule):
    """The index maps a tensor to something other than a file in its folder.

    ## What it checks
    Every value of weight_map is a string that is a plain file name: no slash or backslash, not `..`, no NUL.

    ## Why it matters
    An index is part of a download.  A path in it that leaves the folder makes a loader open files of its user.

    ## What engines do
    transformers and others join the value to the folder's path and open the result, wherever it is.  This tool
    opens nothing that is not in the folder by name.

    ## Fix
    Rebuild the index from the shards' headers.  Ask where the checkpoint comes from.

    ## References
    https://cwe.mitre.org/data/definitions/22.html
    """

    code, title, severity = "FIL112", "index leaves the folder", Severity.ERROR

    def check(self, ctx: Context) -> Iterator[Finding]:
        """Findings on tensors, up to a number for each index."""
        checkpoint = ctx.checkpoint
        for index in [checkpoint.index, *checkpoint.other_indices]:
            if index is not None:
                found = ((n, f"{quoted(n)} is mapped to {v}") for n, v in index.unsafe.items())
                yield from self.listed(index.file, found, len(index.unsafe))
