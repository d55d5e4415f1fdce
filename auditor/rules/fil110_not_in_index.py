"""FIL110."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import REBUILD, FileRule, quoted
from auditor.finding import Finding, Remedy, Safety, Severity


class NotInIndex(FileRule):
    """A shard that the index names holds a tensor that the index does not name.

    ## What it checks
    Every tensor of every indexed shard has an entry in weight_map, and so have those of shards of the same numbered
    series.  Any other shard that the index does not name is one finding of FIL111.

    ## Why it matters
    Loaders that go by the index never see the tensor: a weight stays at its random start, a scale at one.

    ## What engines do
    transformers loads what the index names, warns that the module is newly initialised, and answers.  vLLM loads
    every tensor of the named files, so the same checkpoint works there.

    ## Fix
    Rebuild the index from the shards' headers: *exact*.

    ## References
    MO#2427, vllm#54230
    """

    code, title, severity = "FIL110", "tensor is not in the index", Severity.ERROR
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """Findings on tensors, up to a number for each shard."""
        index = ctx.checkpoint.index
        if index is None or not (index.weight_map or ctx.checkpoint.adopted):
            return
        known = index.weight_map.keys() | index.unsafe.keys()
        fix = Remedy(Safety.EXACT, REBUILD)
        forgotten_shards = [ctx.checkpoint.shards[name] for name in sorted(ctx.checkpoint.adopted)]
        for shard in [*ctx.checkpoint.indexed(), *forgotten_shards]:
            forgotten = [ref.name for ref in shard.header.tensors if ref.name not in known]
            messages = ((name, f"{quoted(name)} is in this file but not in {index.file}") for name in forgotten)
            yield from self.listed(shard.name, messages, len(forgotten), fix=fix)
