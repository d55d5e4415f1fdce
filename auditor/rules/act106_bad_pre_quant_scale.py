"""ACT106."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule


class BadPreQuantScale(LayerRule):
    """A pre_quant_scale has entries that are zero, negative, NaN or infinite.

    ## What it checks
    Every value of AWQ's and SVDQuant's per-channel pre_quant_scale.

    ## Why it matters
    It multiplies the layer's input, channel by channel, before quantisation.  A zero switches the channel
    off; NaN reaches every output.  Zeros come from channels whose calibrated amax was zero.

    ## What engines do
    They multiply.

    ## Fix
    Zeros: the smallest positive entry of the tensor, else 1e-8, a *guess*: it is right where the channel is truly
    silent.  A tensor with negative, NaN or infinite entries is left alone: it needs another calibration.

    ## References
    Model-Optimizer#1265
    """

    code, title, severity = "ACT106", "unusable pre_quant_scale", Severity.ERROR

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per pre_quant_scale."""
        ref = layer.get(Role.PRE_QUANT)
        stats = ctx.float_stats(ref)
        if ref is None or stats is None:
            return
        kinds = {"NaN": stats.nan, "infinite": stats.inf, "negative": stats.negative, "zero": stats.zeros}
        bad = {kind: h for kind, h in kinds.items() if h.count}
        if not bad:
            return
        count = sum(h.count for h in bad.values())
        places = sorted({place for h in bad.values() for place in h.first})
        shown = ", ".join(f"{h.count} {kind}" for kind, h in bad.items())
        message = f"{count} of {stats.size} channels: {shown}"
        fix = Remedy(Safety.GUESS, "zeros: the smallest positive channel, or 1e-8") if list(bad) == ["zero"] else None
        yield self.finding(ref, message, count=count, places=ctx.places(ref, places), fix=fix, layer=layer.name)
