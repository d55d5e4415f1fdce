"""SCL109."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.audit import Depth
from auditor.blocks import Bytes, Kind, Mask, Under, pick
from auditor.context import Context
from auditor.finding import PLACES_KEPT, Finding, Remedy, Safety, Severity
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.probes import NONE, Hits
from auditor.rule import LayerRule
from auditor.scalars import faulty
from quant.cast import is_nan
from quant.codes import E4M3


class LostBlock(LayerRule):
    """A block is sixteen times +6 under a finite scale: a NaN scale was papered over.

    ## What it checks
    At full depth: blocks whose packed bytes are all 0x77, in tensors where they are the exception (fewer than half of
    the blocks).  Blocks under a scale of zero or NaN are left out on both sides: SCL102 and SCL101 speak of them.

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
        if codes is None or scales is None or not codes.sevens.count:
            return
        if any(faulty(value) for value in ctx.values(layer.get(Role.GLOBAL)) or ()):
            return
        apart = scales.zeros.count + scales.nan.count
        lost = _lost(layer, ctx, codes.sevens) if apart else codes.sevens
        if not lost.count or 2 * lost.count >= scales.size - apart:
            return
        message = f"{lost.count} of {scales.size} blocks are sixteen times +6 under a finite scale"
        fix = Remedy(Safety.GUESS, "zero the blocks; with the source they are restored")
        places = ctx.places(layer.scales, lost.first)
        yield self.finding(layer.scales, message, count=lost.count, places=places, fix=fix, layer=layer.name)


def live(scales: Bytes) -> Mask:
    """Which block scales are neither zero nor NaN."""
    return np.asarray((scales != 0) & ~is_nan(E4M3, scales))


def _lost(layer: QuantizedLayer, ctx: Context, sevens: Hits) -> Hits:
    """Of the blocks of 0x77 in a tensor with zero or NaN scales, those whose scale is another."""
    geometry = layer.geometry()
    if geometry is None:
        return NONE
    reports = ((kind, ctx.blocks(layer, kind)) for kind in (Kind.ZERO, Kind.NAN))
    under = sum(report.hits(kind, Under.SEVENS).count for kind, report in reports if report is not None)
    count = sevens.count - under
    if not count or not under:
        return Hits(count, sevens.first if count else ())
    first: list[int] = []
    for blocks in pick(ctx.read, layer, geometry, live):
        first += blocks.flat[blocks.sevens].tolist()
        if len(first) >= min(count, PLACES_KEPT):
            break
    return Hits(count, tuple(first[:PLACES_KEPT]))
