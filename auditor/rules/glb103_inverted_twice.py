"""GLB103."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.scalars import faulty
from quant.scheme import GlobalScale


class InvertedTwice(LayerRule):
    """A global scale says that the weights are far too large: it may have been inverted twice.

    ## What it checks
    modelopt's weight_scale_2 above 1 and compressed-tensors' weight_global_scale below 1: both mean an amax
    above 2688 (448 with the blocks of 32 of W4A8), which no language model's weights have.

    ## Why it matters
    The two conventions are reciprocal.  A converter that inverts once too often, or not at all, leaves a
    layer wrong by the square of its scale.

    ## What engines do
    They use the number.

    ## Fix
    None is proposed: compare with the source, or with the same layer of another export.

    ## References
    modular#6600
    """

    code, title, severity, needs = "GLB103", "global scale may be inverted", Severity.WARNING, Depth.SCALARS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per global scale tensor; a heuristic."""
        ref, values = layer.global_scale, ctx.values(layer.global_scale)
        if ref is None or not values or not layer.format.is_fp4():
            return
        divides = layer.format.global_scale is GlobalScale.DIVIDE
        odd = [i for i, v in enumerate(values) if not faulty(v) and (v < 1 if divides else v > 1)]
        if not odd:
            return
        value = values[odd[0]]
        unit = layer.format.amax_unit or 2688.0
        message = f"{value:.6g} means weights up to {unit / value if divides else unit * value:.4g}: inverted twice?"
        yield self.finding(ref, message, count=len(odd), places=ctx.places(ref, odd), layer=layer.name)
