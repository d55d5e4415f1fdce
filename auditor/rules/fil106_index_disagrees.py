"""FIL106."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import REBUILD, FileRule, quoted
from auditor.finding import Finding, Remedy, Safety, Severity


class IndexDisagrees(FileRule):
    """The index maps a tensor to a shard that does not hold it.

    ## What it checks
    Every entry of weight_map against the header of the shard it names, where that header can be read.

    ## Why it matters
    The index is how loaders find tensors.  A tensor that is in no shard is lost; one that is in another shard is
    there, but is not found.

    ## What engines do
    transformers raises on the first such tensor, or reports it as missing and fills it with random numbers.
    vLLM opens the files, not the entries: it loads what it finds and may serve a weight that was never loaded.

    ## Fix
    Where the tensor is in another shard that the index names, or in a file that holds nothing but what the index names
    (a shard that was renamed): rebuild the index from the headers, *exact*.  Where it is only in a file that holds
    other things too, which of them belong to the model is for a person to say.  Where it is in none: the export has to
    be repeated.  Entries that cannot be mended stay as they are.

    ## References
    huggingface_hub#4725, huggingface_hub#4728
    """

    code, title, severity = "FIL106", "index names a tensor its shard lacks", Severity.ERROR
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """Findings on shards: first what is elsewhere, then what is lost."""
        index, tensors = ctx.checkpoint.index, ctx.checkpoint.tensors
        if index is None:
            return
        broken = {name for shard in ctx.checkpoint.shards.values() for name in shard.header.unreadable}
        held = {shard.name: {r.name for r in shard.header.tensors} for shard in ctx.checkpoint.indexed()}
        ours = ctx.checkpoint.ours()
        elsewhere: dict[str, list[str]] = {}
        apart: dict[str, list[str]] = {}
        lost: dict[str, list[str]] = {}
        for name, shard in index.weight_map.items():
            if shard in held and name not in held[shard] and name not in broken:
                kind = lost if name not in tensors else elsewhere if tensors[name].shard in ours else apart
                kind.setdefault(shard, []).append(name)
        for kind, fix in ((elsewhere, Remedy(Safety.EXACT, REBUILD)), (apart, None)):
            for shard, names in sorted(kind.items()):
                moved = ((n, f"{index.file} puts {quoted(n)} here; it is in {tensors[n].shard}") for n in names)
                yield from self.listed(shard, moved, len(names), fix=fix)
        for shard, names in sorted(lost.items()):
            gone = ((n, f"{index.file} puts {quoted(n)} here; no shard that can be read holds it") for n in names)
            yield from self.listed(shard, gone, len(names))
