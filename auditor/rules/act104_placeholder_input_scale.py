"""ACT104."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.peers import UNLIKE, amax_of, float32, siblings, typical
from auditor.rule import LayerRule
from quant.scheme import GlobalScale

_NVFP4 = {
    float32(0.5 / 2688): "modelopt's fallback (amax 0.5)",
    float32(1 / 448): "what modelopt 0.47 writes for an amax of zero or NaN (1/448)",
}
_ONE = "exactly 1.0"


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
    The peers' largest scale, on request, *bounded*.

    ## References
    modelopt's set_expert_quantizer_amax, llm-compressor#2826
    """

    code, title, severity, needs = "ACT104", "placeholder activation scale", Severity.INFO, Depth.SCALARS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per activation scale; a warning only where peers differ."""
        ref, value = layer.input_scale, ctx.scalar(layer.input_scale)
        what = _placeholder(layer, value)
        if ref is None or value is None or not what:
            return
        others = [p for p in siblings(layer, ctx) if not _placeholder(p, ctx.scalar(p.input_scale))]
        usual = typical(others, ctx)
        message, severity, fix = f"{value:.7g} is a placeholder: {what}", Severity.INFO, None
        if usual is not None:
            ratio = amax_of(layer, value) / usual
            if not 1 / UNLIKE <= ratio <= UNLIKE:
                severity = Severity.WARNING
                message += f"; amax {amax_of(layer, value):.4g} against {usual:.4g} of its peers ({ratio:.3g}x)"
                fix = Remedy(Safety.BOUNDED, "the largest scale of its peers")
        places = ctx.places(ref, [0])
        yield self.finding(ref, message, places=places, severity=severity, fix=fix, layer=layer.name)


def _placeholder(layer: QuantizedLayer, value: float | None) -> str:
    """Which placeholder a value is, "" when it is none."""
    if value is None or layer.format.unaudited:
        return ""
    if layer.format.global_scale is GlobalScale.MULTIPLY and layer.format.amax_unit == 2688.0:
        return _NVFP4.get(value, "")
    return _ONE if value == 1.0 else ""
