"""SCL104."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.blocks import Kind, Under
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.scalars import faulty
from quant.codes import E4M3

_FEWEST = 8


class HiddenSaturation(LayerRule):
    """Many block scales sit at 448: a clamp hid larger ones.

    ## What it checks
    Block scales 0x7E (448) over live blocks: at least 8, and more of them than of 0x7A to 0x7D together.
    In sound exports 0x7E is at most 7 % of a tensor and 0x7A to 0x7D are about 40 %; a lone 0x7E is normal,
    it is any block within 3.6 % of the tensor's largest.  Zero blocks stored as 0x7E do not count.

    ## Why it matters
    When the global scale is too small for the weights (calibrated on something else, or shared with a smaller
    sibling), block scales above 448 are clamped.  The largest weights of the layer shrink, without a NaN to
    show for it.

    ## What engines do
    Nothing: the numbers are finite and wrong.

    ## Fix
    None from the checkpoint alone.  With the source it is proven (block amax > 6 * 464 * weight_scale_2) and
    the layer is requantised, *restored*.  A heuristic: weights of one magnitude look the same and are legal.

    ## References
    Model-Optimizer#1633: a saturated scale "should be surfaced, not hidden"
    """

    code, title, severity = "SCL104", "block scales saturated at 448", Severity.WARNING

    def applies(self, layer: QuantizedLayer) -> bool:
        """NVFP4 only: E4M3 block scales under a global scale."""
        return layer.format.scale is E4M3 and layer.global_scale is not None

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        stats = ctx.byte_stats(layer.scales)
        if stats is None or stats.saturated < _FEWEST or stats.saturated <= stats.near_top:
            return
        report = ctx.blocks(layer, Kind.SATURATED)
        live = report.hits(Kind.SATURATED, Under.SEVENS, Under.OTHER) if report else None
        if live is None or live.count < _FEWEST or live.count <= stats.near_top:
            return
        message = f"{live.count} of {stats.size} block scales are 448 (0x7E) over live blocks, "
        if any(faulty(value) for value in ctx.values(layer.global_scale) or ()):
            message += "under an unusable global scale: the static path's signature of a zero weight"
        else:
            message += f"{stats.near_top} are 288 to 416: larger ones were clamped, or all blocks share one amax"
        fix = Remedy(Safety.RESTORED, "requantise from the source")
        places = ctx.places(layer.scales, live.first)
        yield self.finding(layer.scales, message, count=live.count, places=places, fix=fix, layer=layer.name)
