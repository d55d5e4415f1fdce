"""FIL108."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.checkpoint import SINGLE
from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Remedy, Safety, Severity


class NoIndex(FileRule):
    """Several shards have no index.

    ## What it checks
    A folder with more than one shard has an index, or a `model.safetensors` that loaders take alone.

    ## Why it matters
    Nothing says which shards belong together, nor whether all are there.

    ## What engines do
    transformers finds neither `model.safetensors` nor an index and refuses the folder.  vLLM and SGLang load every
    `*.safetensors` they see.

    ## Fix
    Write an index from the shards' headers: *exact*, where each tensor is in one shard.

    ## References
    vllm#7953
    """

    code, title, severity = "FIL108", "several shards without an index", Severity.WARNING
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for the folder, named by its first shard."""
        checkpoint = ctx.checkpoint
        shards = sorted([*checkpoint.shards, *checkpoint.unopened])
        if checkpoint.index is None and len(shards) > 1 and SINGLE not in shards:
            fix = None if checkpoint.duplicates else Remedy(Safety.EXACT, "write an index from the shards' headers")
            message = f"{len(shards)} shards, from here to {shards[-1]}, and no index that names them"
            yield self.file_finding(shards[0], message, related=shards[1:9], fix=fix)
