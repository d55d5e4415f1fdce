"""FMT103."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import is_weight_scale, split
from auditor.rule import CheckpointRule


class Fp8WithoutScale(CheckpointRule):
    """An FP8 weight has no scale.

    ## What it checks
    F8_E4M3 and F8_E5M2 tensors in whose module nothing is called a scale, those of activations and of the KV cache
    apart.

    ## Why it matters
    The weight is known up to an unknown factor.

    ## What engines do
    Some take 1.0, some refuse, some leave the scale uninitialised.

    ## Fix
    None: the scale is not in the file.  1.0 only on an explicit option, for exports that cast without scaling.

    ## References
    miles#1640
    """

    code, title, severity = "FMT103", "FP8 weight without a scale", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per weight."""
        if not ctx.recognised.unclaimed:
            return
        scaled = {split(name)[0] for name in ctx.checkpoint.tensors if is_weight_scale(split(name)[1])}
        for ref in ctx.recognised.unclaimed:
            module, leaf = split(ref.name)
            if ref.dtype in ("F8_E4M3", "F8_E5M2") and "scale" not in leaf and module not in scaled:
                yield self.finding(
                    ref, f"{ref.dtype} {list(ref.shape)} and no scale in {module or 'the file'}", layer=module
                )
