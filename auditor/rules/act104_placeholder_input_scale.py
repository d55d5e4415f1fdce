"""ACT104."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.peers import amax_of, placeholder, remedy, siblings, typical, unlike
from auditor.rule import LayerRule


class PlaceholderInputScale(LayerRule):
    """An activation scale is a constant that exporters write when calibration gave nothing.

    ## What it checks
    Values equal, to the bit, to modelopt's 0.5/2688 (1.860119e-4) and 1/448 (0.002232143) for NVFP4, to 1.0
    for FP8, and to a compressed-tensors divisor of 1.0.

    ## Why it matters
    By itself it may be harmless: a constant-amax recipe writes 1.0 on purpose.  Among experts whose own scales
    differ from it by more than 4x it is a warning: the layer's maximum (or the smallest divisor) is taken over
    all experts, so one placeholder sets the activation scale of the whole layer.

    ## What engines do
    They cannot tell it from a measured value.

    ## Fix
    By the policies of ACT101 (the peers' largest scale, *bounded* when at least half of them are plausible), on
    request: `--include ACT104`.

    ## References
    modelopt's set_expert_quantizer_amax, llm-compressor#2826
    """

    code, title, severity, needs = "ACT104", "placeholder activation scale", Severity.INFO, Depth.SCALARS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per activation scale; a warning only where peers differ."""
        ref, value = layer.input_scale, ctx.scalar(layer.input_scale)
        what = placeholder(layer, value) if value is not None else ""
        if ref is None or value is None or not what:
            return
        stored = [(peer, ctx.scalar(peer.input_scale)) for peer in siblings(layer, ctx)]
        others = [peer for peer, other in stored if other is None or not placeholder(peer, other)]
        usual = typical(others, ctx)
        message, severity, fix = f"{value:.7g} is a placeholder: {what}", Severity.INFO, None
        amax = amax_of(layer, value)
        if usual is not None and unlike(amax, usual):
            severity, fix = Severity.WARNING, remedy(layer, ref.dtype, ctx)
            message += f"; amax {amax:.4g} against {usual:.4g} of its peers ({amax / usual:.3g}x)"
        places = ctx.places(ref, [0])
        yield self.finding(ref, message, places=places, severity=severity, fix=fix, layer=layer.name)
