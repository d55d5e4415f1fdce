"""FMT108."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule


class ScaleDtype(LayerRule):
    """A scale is stored in a dtype that loaders refuse.

    ## What it checks
    NVFP4 global and activation scales that are not F32; weight_scale_inv that is neither F32 nor BF16.
    E8M0 scales stored as U8, and llm-compressor's BF16 scales of FP8 layers, are legal.

    ## Why it matters
    Loaders copy scales into float32 parameters after comparing dtypes, or reinterpret the bytes.

    ## What engines do
    Some convert, some refuse, some read two BF16 bytes as half of a float32.

    ## Fix
    Upcast to F32, which needs a rewritten shard: *exact*.

    ## References
    modular#7142, lmdeploy#4276
    """

    code, title, severity, needs = "FMT108", "scale of an unusual dtype", Severity.WARNING, Depth.HEADERS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        for role, ref in layer.parts.items():
            usual = layer.format.parts[role].usual
            if usual is not None and ref.dtype not in usual:
                message = f"{ref.name.rpartition('.')[2]} is {ref.dtype}, loaders expect {' or '.join(sorted(usual))}"
                fix = Remedy(Safety.EXACT, "upcast to F32; the shard is rewritten")
                yield self.finding(ref, message, fix=fix, layer=layer.name)
