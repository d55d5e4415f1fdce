"""SCL108."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import PLACES_KEPT, Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.probes import NONE, FloatStats, Hits
from auditor.rule import LayerRule
from auditor.scalars import TINY
from auditor.under import live_zeros


class BadFloatScale(LayerRule):
    """An FP8 scale is NaN, infinite, negative or subnormal, or zero over codes that are not.

    ## What it checks
    Scales per tensor, channel or 128x128 block stored as floats (weight_scale, weight_scale_inv), of audited
    formats and, for NaN and infinity, of the others, too.  A zero scale over zero codes is legal.

    ## Why it matters
    NaN, infinity and sign reach every weight under the scale; zero wipes them out.  A per-tensor scale of zero
    is what an all-zero weight leaves behind, with NaN bytes for codes (WGT102).  Under a subnormal one the weights
    are nothing, and its reciprocal may overflow.

    ## What engines do
    They multiply by it, in spite of the name weight_scale_inv.

    ## Fix
    Scale 1 where the weight was all zero, *exact*; otherwise requantise from the source, *restored*.

    ## References
    modelopt 0.47 and older (all-zero weights)
    """

    code, title, severity, needs = "SCL108", "unusable FP8 scale", Severity.ERROR, Depth.SCALARS

    def applies(self, layer: QuantizedLayer) -> bool:
        """Layers whose scales are floats."""
        return layer.format.scale is None

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        stats = ctx.float_stats(layer.scales)
        if stats is None:
            return
        bad = {"NaN": stats.nan, "infinite": stats.inf}
        if not layer.format.unaudited:
            bad["negative"] = stats.negative
            bad["zero"] = live_zeros(layer, ctx) if stats.zeros.count else stats.zeros
            bad["subnormal"] = _subnormal(layer, stats, ctx)
        found = {kind: h for kind, h in bad.items() if h.count}
        if not found:
            return
        count = sum(h.count for h in found.values())
        places = sorted({place for h in found.values() for place in h.first})
        shown = ", ".join(f"{h.count} {kind}" for kind, h in found.items())
        fix = Remedy(Safety.RESTORED, "requantise from the source")
        if list(found) == ["zero"] and count == stats.size:
            fix = Remedy(Safety.EXACT, "scale 1, if the weight is NaN throughout: it was all zero")
        message = f"{count} of {stats.size} scales: {shown}"
        where = ctx.places(layer.scales, places)
        yield self.finding(layer.scales, message, count=count, places=where, fix=fix, layer=layer.name)


def _subnormal(layer: QuantizedLayer, stats: FloatStats, ctx: Context) -> Hits:
    """Positive scales below the normal float32 range; of a large tensor only that there are some."""
    if stats.low >= TINY:
        return NONE
    found = [i for i, value in enumerate(ctx.values(layer.scales) or ()) if 0 < value < TINY]
    return Hits(len(found) or 1, tuple(found[:PLACES_KEPT]))
