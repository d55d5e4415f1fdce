"""KVC102."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.rule import CheckpointRule
from auditor.tensorref import TensorRef

_PAIRS = (
    ("k_scale", "v_scale"),
    ("k_cache.scale", "v_cache.scale"),
    ("k_bias", "v_bias"),
    ("k_proj.output_scale", "v_proj.output_scale"),
)


class LonelyKvScale(CheckpointRule):
    """An attention layer has a scale for its keys and none for its values, or the reverse.

    ## What it checks
    k_scale and v_scale (k_cache.scale and v_cache.scale) of each attention module, wherever they hang:
    `k_proj.k_scale`, `self_attn.k_scale` and so on.

    ## Why it matters
    Half of the cache is scaled by calibration and half by a default.

    ## What engines do
    vLLM duplicates a single kv_scale but refuses, or silently falls back to 1.0, when one of a pair is missing.

    ## Fix
    1.0 for the missing one or drop the other, on an explicit option, a *guess*.

    ## References
    sglang#40243
    """

    code, title, severity = "KVC102", "KV-cache scale without its partner", Severity.WARNING
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per scale that is alone."""
        found: dict[tuple[str, int], dict[int, TensorRef]] = {}
        for ref in ctx.recognised.kv:
            for number, pair in enumerate(_PAIRS):
                for side, leaf in enumerate(pair):
                    if ref.name.endswith("." + leaf):
                        module = ref.name[: -len(leaf) - 1].removesuffix((".k_proj", ".v_proj")[side])
                        found.setdefault((module, number), {})[side] = ref
        for (_, number), sides in found.items():
            if len(sides) == 1:
                ((side, ref),) = sides.items()
                fix = Remedy(Safety.GUESS, "write 1.0 for the missing one, or drop this one, on request")
                yield self.finding(ref, f"its partner {_PAIRS[number][1 - side]} is missing", fix=fix)
