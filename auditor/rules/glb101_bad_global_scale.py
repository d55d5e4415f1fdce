"""GLB101."""

from __future__ import annotations

import math
from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.scalars import describe, faulty
from quant.scheme import GlobalScale


class BadGlobalScale(LayerRule):
    """A second-level scale is zero, NaN, infinite or negative.

    ## What it checks
    weight_scale_2 (modelopt, Quark) and weight_global_scale (compressed-tensors), also one per expert.

    ## Why it matters
    It multiplies (or divides) every weight of the layer.  The usual cause is an all-zero weight: modelopt
    then stores weight_scale_2 = 0, block scales 0xFF or 0x7E and packed bytes 0x77, and converters turn the
    zero into an infinite divisor.

    ## What engines do
    0 * NaN and x / inf: the layer gives NaN or zeros.  In a fused set the broken value can win: the maximum of
    the set with an infinite divisor rescales its siblings to nothing.

    ## Fix
    An all-zero tensor (every block shows the signature): zero codes, finite scales, the peer's global scale
    or 1, *exact*.  Otherwise requantise from the source, *restored*.

    ## References
    Model-Optimizer 0.47 and older (all-zero weights)
    """

    code, title, severity, needs = "GLB101", "unusable global scale", Severity.ERROR, Depth.SCALARS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per global scale tensor."""
        ref = layer.global_scale
        values = ctx.values(ref)
        if ref is None or values is None or layer.format.unaudited:
            return
        bad = [i for i, value in enumerate(values) if faulty(value)]
        if not bad:
            return
        what = describe([values[i] for i in bad])
        message = (
            f"{ref.name.rpartition('.')[2]} is {what}" if len(values) == 1 else f"{len(bad)} of {len(values)}: {what}"
        )
        zeroed = all(
            v == 0 or (math.isinf(v) and layer.format.global_scale is GlobalScale.DIVIDE)
            for v in (values[i] for i in bad)
        )
        fix = Remedy(Safety.RESTORED, "requantise the layer from the source")
        if zeroed:
            fix = Remedy(Safety.EXACT, "if every block shows the signature of a zero weight: zero codes, finite scales")
        yield self.finding(ref, message, count=len(bad), places=ctx.places(ref, bad), fix=fix, layer=layer.name)
