"""FMT112."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.jsonfile import table
from auditor.rule import CheckpointRule
from auditor.tensorref import TensorRef

_NUMBER = re.compile(r"\.(?:layers|experts)\.(\d{1,6})(?=\.[^.]+\.)")  # with modules of their own
_SHOWN = 8


class GapInNumbers(CheckpointRule):
    """A layer, or an expert of a layer, has no tensor at all, though its neighbours on both sides have.

    ## What it checks
    The numbers behind `layers.` and `experts.` in the names of all shards, of those that have modules of their own
    (`layers.0.mlp.up_proj`, not `layers.0.weight`: a sequence may hold activations): between the smallest and the
    largest of a kind none is left out.  Names that cannot be read (FIL103) count.  Silent while a shard is missing or
    unreadable, and for models whose configuration says what each block is made of (block_configs): there a block may
    be empty.

    ## Why it matters
    Nothing else tells: index and headers agree with each other, since both were written after the tensors were lost.

    ## What engines do
    transformers fills the module with random numbers and warns.  vLLM and SGLang allocate memory for all experts and
    load those that they find; the others stay whatever that memory held.

    ## Fix
    None: export again.  The source has the weights, not the scales that calibration gave.

    ## References
    vLLM, FusedMoE weight loaders; transformers, missing keys
    """

    code, title, severity = "FMT112", "gap in the numbers of layers or experts", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each module whose children have gaps."""
        checkpoint = ctx.checkpoint
        broken = checkpoint.missing or checkpoint.unopened or any(s.header.refused for s in checkpoint.shards.values())
        if broken or "block_configs" in table(checkpoint.config):
            return
        numbers: dict[str, set[int]] = {}
        unread = (name for shard in checkpoint.shards.values() for name in shard.header.unreadable)
        for name in chain(checkpoint.tensors, unread):
            for found in _NUMBER.finditer("." + name):
                numbers.setdefault(name[: found.start(1) - 2], set()).add(int(found[1]))
        for module, known in numbers.items():
            if max(known) - min(known) >= len(known) and checkpoint.tensors:
                yield self._gap(ctx, module, known)

    def _gap(self, ctx: Context, module: str, known: set[int]) -> Finding:
        low, high = min(known), max(known)
        gone = [n for n in range(low, high) if n not in known]
        last = max(n for n in known if n < gone[0])
        named = ", ".join(map(str, gone[:_SHOWN])) + (", ..." if len(gone) > _SHOWN else "")
        message = f"of {module}.{low} to {high} nothing is stored for {named}"
        return self.finding(_first(ctx, f"{module}.{last}."), message, count=len(gone), layer=module)


def _first(ctx: Context, prefix: str) -> TensorRef:
    """The first tensor under a module, by name; of one that cannot be read, the first of all."""
    tensors = ctx.checkpoint.tensors
    return tensors[min((name for name in tensors if name.startswith(prefix)), default=min(tensors))]
