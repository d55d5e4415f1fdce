"""SCL103."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.codes import E4M3


class NegativeBlockScale(LayerRule):
    """A block scale has its sign bit set.

    ## What it checks
    E4M3 block scales from 0x80 (-0) to 0xFE.

    ## Why it matters
    A scale is a magnitude.  No exporter writes a negative one: the bytes were damaged or belong to another
    tensor, and the block's weights change sign.

    ## What engines do
    Kernels multiply by the negative number; some read scales as unsigned E4M3 and ignore the sign.

    ## Fix
    0x80 becomes 0x00, *exact*.  Other blocks are requantised from the source, *restored*.

    ## References
    OCP 8-bit floating point specification, E4M3
    """

    code, title, severity = "SCL103", "negative block scale", Severity.ERROR

    def applies(self, layer: QuantizedLayer) -> bool:
        """E4M3 block scales only."""
        return layer.format.scale is E4M3

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        stats = ctx.byte_stats(layer.scales)
        if stats is None or not stats.negative.count:
            return
        places = ctx.places(layer.scales, stats.negative.first)
        message = f"{stats.negative.count} of {stats.size} block scales have the sign bit set"
        fix = Remedy(Safety.RESTORED, "requantise the blocks from the source")
        if stats.negative.count == stats.minus_zeros:
            fix = Remedy(Safety.EXACT, "write 0x00 over 0x80: -0 and +0 scale alike")
        yield self.finding(
            layer.scales, message, count=stats.negative.count, places=places, fix=fix, layer=layer.name
        )  # fmt: skip
