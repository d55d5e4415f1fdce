"""FIL114."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Remedy, Safety, Severity


class TotalSize(FileRule):
    """The index states another total size than its tensors have.

    ## What it checks
    metadata.total_size against the bytes of all tensors that weight_map names, when every one of them could be
    found; and whether it is a whole number at all: a string, null, a list, a truth value, NaN or 1e400 is not.

    ## Why it matters
    The number is for display; a wrong one shows that shards were changed after the index was written.

    ## What engines do
    Common loaders do not look at it; model pages and planners of memory show it.  A few small readers and
    converters compare it with the tensors, or add to it.

    ## Fix
    Rebuild the index from the shards' headers: *exact*.

    ## References
    https://huggingface.co/docs/safetensors/metadata_parsing
    """

    code, title, severity = "FIL114", "total_size is wrong", Severity.INFO
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding, on the index."""
        index, tensors = ctx.checkpoint.index, ctx.checkpoint.tensors
        if index is None or not index.weight_map or (index.total_size is None and not index.odd_size):
            return
        fix = None
        message = f"metadata.total_size is {index.odd_size}, not a number of bytes"
        if all(name in tensors for name in index.weight_map):
            fix = Remedy(Safety.EXACT, "write the sum of the tensors' bytes")
            held = sum(tensors[name].nbytes for name in index.weight_map)
            if index.total_size == held:
                return
            if index.total_size is not None:
                message = f"metadata.total_size is {index.total_size}, the tensors have {held} bytes"
        if fix or index.odd_size:
            yield self.file_finding(index.file, message, fix=fix)
