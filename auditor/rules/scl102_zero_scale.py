"""SCL102."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.codes import E4M3


class ZeroScaleOverLiveCodes(LayerRule):
    """A block scale underflowed to zero over codes that are not zero.

    ## What it checks
    Block scales 0x00 whose block has a code other than +0 and -0.

    ## Why it matters
    The block's true scale was below 2^-9, the smallest E4M3 value, and became 0.  The exporter then divided
    by that zero, so the codes are 7 and 15 whatever the weights were.  The block reads as zeros: small
    weights are lost, silently.

    ## What engines do
    All of them multiply by the zero.  An engine that replaced zero scales by the smallest positive one would
    turn the block into noise.

    ## Fix
    Zeroing the codes keeps the value (0) and takes the noise out of reach, *exact*.  Never raise the byte
    alone.  With the source the block is requantised, *restored*.

    ## References
    Model-Optimizer#1382 (fixed in 0.45: scales are clamped at 2^-9)
    """

    code, title, severity = "SCL102", "zero block scale over live codes", Severity.WARNING

    def applies(self, layer: QuantizedLayer) -> bool:
        """E4M3 block scales only."""
        return layer.format.scale is E4M3

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        live = ctx.live_zero_scales(layer)
        if not live.count:
            return
        message = f"{live.count} of {layer.scales.size} block scales underflowed to 0 over codes that are not zero"
        fix = Remedy(Safety.EXACT, "zero the codes: the blocks read as 0 already; with the source they are restored")
        places = ctx.places(layer.scales, live.first)
        yield self.finding(layer.scales, message, count=live.count, places=places, fix=fix, layer=layer.name)
