"""SCL107."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.codes import E8M0


class ZeroE8m0OverLiveCodes(LayerRule):
    """An E8M0 scale is the byte 0 over codes that are not zero.

    ## What it checks
    MXFP4 scales of byte 0 whose block has a code other than +0 and -0.

    ## Why it matters
    The byte means 2^-127, so the block's weights are at most 6 * 2^-127: zero for every purpose.  Engines
    that read the byte as 0 agree to within that.

    ## What engines do
    Some compute 2^-127, some 0.  In bfloat16 kernels that do not flush subnormals the product is subnormal.

    ## Fix
    Zero the codes, *bounded* by 6 * 2^-127.  Nothing needs it.

    ## References
    vllm#46676
    """

    code, title, severity = "SCL107", "smallest power-of-two scale over live codes", Severity.INFO

    def applies(self, layer: QuantizedLayer) -> bool:
        """Packed FP4 under E8M0 scales."""
        return layer.format.scale is E8M0 and layer.format.is_fp4()

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        live = ctx.live_zero_scales(layer)
        if not live.count:
            return
        message = f"{live.count} of {layer.scales.size} E8M0 scales are 0 (2^-127) over codes that are not zero"
        fix = Remedy(Safety.BOUNDED, "zero the codes: the weights are at most 6 * 2^-127")
        places = ctx.places(layer.scales, live.first)
        yield self.finding(layer.scales, message, count=live.count, places=places, fix=fix, layer=layer.name)
