"""FMT106."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.shapes import is_swizzled


class SwizzledScales(LayerRule):
    """Block scales are stored in the padded, swizzled layout of a running kernel.

    ## What it checks
    Scales whose shape is that of the codes padded to 128 rows and 4 scale columns, where the true one differs.

    ## Why it matters
    A running server pads and permutes scales for its matrix units: reshape(M/128, 4, 32, G/4, 4) and
    permute(0, 3, 2, 1, 4).  Saved from there, the bytes are in an order that no loader expects.

    ## What engines do
    They refuse the shape.

    ## Fix
    Undo the permutation and crop, which needs a rewritten shard: *exact*, since the shape proves the layout.

    ## References
    cuBLAS block-scaling layout, vLLM's swizzle_blockscale
    """

    code, title, severity, needs = "FMT106", "swizzled block scales", Severity.ERROR, Depth.HEADERS

    def applies(self, layer: QuantizedLayer) -> bool:
        """Packed FP4 only."""
        return layer.format.is_fp4()

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        if is_swizzled(layer):
            message = f"shape {list(layer.scales.shape)} is that of codes {list(layer.codes.shape)} padded for a kernel"
            fix = Remedy(Safety.EXACT, "unswizzle and crop; the shard is rewritten")
            yield self.finding(layer.scales, message, fix=fix, layer=layer.name)
