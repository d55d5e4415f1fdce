"""FIL107."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from auditor.context import Context
from auditor.filerule import REBUILD, FileRule
from auditor.finding import Finding, Remedy, Safety, Severity

_SHOWN = 100


class MissingShard(FileRule):
    """The index names a shard that is not in the folder.

    ## What it checks
    Every file name in weight_map exists beside the index.  A link that leads nowhere exists, and is reported as a
    file that cannot be opened.

    ## Why it matters
    All tensors of that shard are missing.

    ## What engines do
    transformers refuses.  vLLM keeps those of the index's files that exist; for a quantised model it may start
    and answer with weights that were never loaded.

    ## Fix
    Where all its tensors are in other shards (one was renamed, or all were cut anew) the index is stale: rebuild it,
    *exact*.  Else none in place: fetch the shard.

    ## References
    vllm#39960, huggingface_hub#4725
    """

    code, title, severity = "FIL107", "shard is missing", Severity.ERROR
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each missing file."""
        index = ctx.checkpoint.index
        if index is None or not ctx.checkpoint.missing:
            return
        elsewhere: dict[str, int] = {}
        ours = ctx.checkpoint.ours()
        for name, file in index.weight_map.items():
            ref = ctx.checkpoint.tensors.get(name) if file in ctx.checkpoint.missing else None
            if ref is not None and ref.shard in ours:
                elsewhere[file] = elsewhere.get(file, 0) + 1
        rebuild = Remedy(Safety.EXACT, REBUILD)
        for file, count in islice(ctx.checkpoint.missing.items(), _SHOWN):
            message = f"named by {index.file} for {count} tensors, not in the folder"
            if file in elsewhere:
                message += f"; {elsewhere[file]} of them are in other shards"
            fix = rebuild if count and elsewhere.get(file) == count else None
            yield self.file_finding(file, message, count=max(1, count), fix=fix)
        if len(ctx.checkpoint.missing) > _SHOWN:
            rest = len(ctx.checkpoint.missing) - _SHOWN
            yield self.file_finding(index.file, f"{rest} more files that it names are not in the folder", count=rest)
