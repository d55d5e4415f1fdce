"""ACT101."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.peers import remedy
from auditor.rule import LayerRule
from auditor.scalars import describe, faulty
from quant.activation import is_zero
from quant.scheme import GlobalScale


class BadInputScale(LayerRule):
    """An activation scale is zero, NaN, infinite, negative or subnormal.

    ## What it checks
    input_scale (modelopt, Quark, FP8) and input_global_scale (compressed-tensors), scalars or one per expert.

    ## Why it matters
    Zero means that calibration never reached the layer: an expert that no sample was routed to.  Servers
    compute 1 / scale, which is infinite, and the layer's output is NaN as soon as a token arrives.  Zero,
    negative and subnormal values are also what uninitialised memory looks like (see ACT105).

    ## What engines do
    vLLM and SGLang take the maximum over a layer's experts (the minimum of divisors), so that one expert's
    infinity or negative value sets the scale of all; dense layers use the value as it is.  TensorRT-LLM
    asserts that fused members are equal.

    ## Fix
    `--policy peer-max` (default): the largest scale of the same projection among the layer's other experts: an
    expert that was never routed will see the same hidden states as its peers, and a scale that is too small
    clips.  *Bounded* when at least half of the peers are plausible, else a *guess*.  Without a plausible peer the
    largest of the fused set, a *guess*.  `min-positive` (exact zeros: the smallest positive value of the tensor,
    else 1e-8) and `floor=VALUE` (an input_scale; its reciprocal where the layout stores divisors) are the other
    policies, each a *guess*.  A negative value is an upstream fault: a *guess*, never repaired silently.

    ## References
    Model-Optimizer#1265, vllm#42601, compressed-tensors#595 (14 of 92 400 scales)
    """

    code, title, severity, needs = "ACT101", "unusable activation scale", Severity.ERROR, Depth.SCALARS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per activation scale tensor."""
        ref, values = layer.input_scale, ctx.values(layer.input_scale)
        if ref is None or values is None or layer.format.unaudited:
            return
        bad = [i for i, value in enumerate(values) if faulty(value)]
        if not bad:
            return
        leaf = ref.name.rpartition(".")[2]
        what = describe([values[i] for i in bad])
        message = f"{leaf} is {what}" if len(values) == 1 else f"{len(bad)} of {len(values)} values of {leaf}: {what}"
        zero = is_zero(np.array([values[i] for i in bad]), layer.format.global_scale is GlobalScale.DIVIDE).all()
        fix = remedy(layer, ref.dtype, ctx, "min-positive or floor=VALUE" if zero else "floor=VALUE")
        if any(values[i] < 0 for i in bad):
            message += "; a negative scale is a fault of the exporter"
            fix = Remedy(Safety.GUESS, f"the exporter is at fault: {fix.note}") if fix else None
        yield self.finding(
            ref,
            message,
            count=len(bad),
            places=ctx.places(ref, bad),
            fix=fix,
            layer=layer.name,
        )
