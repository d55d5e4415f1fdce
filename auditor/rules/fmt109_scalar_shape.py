"""FMT109."""

from __future__ import annotations

import math
from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.scheme import GlobalScale


class ScalarShape(LayerRule):
    """A per-tensor scale has a shape that loaders do not take.

    ## What it checks
    Global and activation scales of a 2-D layer must hold one number, those of fused 3-D experts one, or one per
    expert.  compressed-tensors must store it as [1]: its own converter from modelopt writes [] instead.

    ## Why it matters
    A 0-d scalar breaks transformers' compressed path; several numbers where one is expected means that the
    tensor belongs to something else.

    ## What engines do
    vLLM accepts [] and [1]; compressed-tensors and transformers refuse [] for weight_global_scale.

    ## Fix
    Rewrite the header's shape: the bytes are the same, *exact*.

    ## References
    compressed-tensors 0.20, ModelOptNvfp4Converter
    """

    code, title, severity, needs = "FMT109", "per-tensor scale of the wrong shape", Severity.WARNING, Depth.HEADERS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        experts = math.prod(layer.codes.shape[:-2]) if len(layer.codes.shape) > 2 else 1
        for role, ref in layer.parts.items():
            if not layer.format.parts[role].scalar:
                continue
            leaf = ref.name.rpartition(".")[2]
            if ref.size not in (1, experts):
                message = f"{leaf} has shape {list(ref.shape)}, one number is expected"
                yield self.finding(ref, message, severity=Severity.ERROR, layer=layer.name)
            elif ref.shape == () and layer.format.global_scale is GlobalScale.DIVIDE:
                message = f"{leaf} is a 0-d scalar, compressed-tensors' loaders expect shape [1]"
                fix = Remedy(Safety.EXACT, "shape [1] in the header; the shard is rewritten")
                yield self.finding(ref, message, fix=fix, layer=layer.name)
