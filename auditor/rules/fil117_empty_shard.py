"""FIL117."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Severity


class EmptyShard(FileRule):
    """A shard holds no tensor.

    ## What it checks
    A header that can be read has at least one entry.

    ## Why it matters
    It is legal, and no exporter means it: the writer had nothing to write, or wrote it elsewhere.

    ## What engines do
    They load nothing from it.  Where it is the only file, every weight stays at its random start.

    ## Fix
    None: export again, or remove the file.

    ## References
    https://github.com/huggingface/safetensors#format ("empty tensors are allowed")
    """

    code, title, severity = "FIL117", "empty shard", Severity.WARNING

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each empty file."""
        for shard in ctx.checkpoint.shards.values():
            header = shard.header
            if not header.refused and not header.tensors and not header.unreadable:
                yield self.file_finding(shard.name, f"{shard.size} bytes and no tensor")
