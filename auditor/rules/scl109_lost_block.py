"""SCL109."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.blocks import Kind, Under, pick
from auditor.context import Context
from auditor.finding import PLACES_KEPT, Finding, Remedy, Safety, Severity
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.probes import NONE, Hits
from auditor.rule import LayerRule
from auditor.scalars import faulty
from quant.codes import E4M3


class LostBlock(LayerRule):
    """A block is sixteen times +6 under a finite scale: a NaN scale was papered over.

    ## What it checks
    At full depth: blocks whose packed bytes are all 0x77 while no scale of the tensor is NaN, in tensors where
    they are the exception (fewer than half of the blocks).  Blocks under a scale of zero are left out on both
    sides: they read as zeros, and SCL102 speaks of them.

    ## Why it matters
    0x77 throughout is what dividing by a NaN scale leaves (SCL101, case 1).  Replacing only the NaN byte by 448
    gives sixteen copies of the tensor's largest weight: finite, and 24 to 30 times worse than zeros.

    ## What engines do
    Nothing: the numbers are finite and wrong.

    ## Fix
    Zero the block, a *guess*; with the source it is *restored*.  A heuristic: sixteen equal weights look the
    same and are legal.

    ## References
    Model-Optimizer#1633
    """

    code, title, severity, needs = "SCL109", "lost block under a finite scale", Severity.WARNING, Depth.FULL

    def applies(self, layer: QuantizedLayer) -> bool:
        """NVFP4 only."""
        return layer.format.is_fp4() and layer.format.scale is E4M3

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per codes tensor."""
        codes, scales = ctx.code_stats(layer.codes), ctx.byte_stats(layer.scales)
        if codes is None or scales is None or not codes.sevens.count or scales.nan.count:
            return
        if any(faulty(value) for value in ctx.values(layer.get(Role.GLOBAL)) or ()):
            return
        lost = _lost(layer, ctx, codes.sevens) if scales.zeros.count else codes.sevens
        if not lost.count or 2 * lost.count >= scales.size - scales.zeros.count:
            return
        message = f"{lost.count} of {scales.size} blocks are sixteen times +6 under a finite scale"
        fix = Remedy(Safety.GUESS, "zero the blocks; with the source they are restored")
        places = ctx.places(layer.scales, lost.first)
        yield self.finding(layer.scales, message, count=lost.count, places=places, fix=fix, layer=layer.name)


def _lost(layer: QuantizedLayer, ctx: Context, sevens: Hits) -> Hits:
    """Of the blocks of 0x77 in a tensor with zero scales, those whose scale is another."""
    report, geometry = ctx.blocks(layer, Kind.ZERO), layer.geometry()
    if report is None or geometry is None:
        return NONE
    under = report.hits(Kind.ZERO, Under.SEVENS)
    count = sevens.count - under.count
    if not count or not under.count:
        return Hits(count, sevens.first if count else ())
    first: list[int] = []
    for blocks in pick(ctx.read, layer, geometry, lambda scales: scales != 0):
        first += blocks.flat[blocks.sevens].tolist()
        if len(first) >= min(count, PLACES_KEPT):
            break
    return Hits(count, tuple(first[:PLACES_KEPT]))
