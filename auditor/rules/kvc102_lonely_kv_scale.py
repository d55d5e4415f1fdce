"""KVC102."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.rule import CheckpointRule
from auditor.tensorref import FLOAT_DTYPES, TensorRef

_PAIRS = (
    ("k_scale", "v_scale"),
    ("k_cache.scale", "v_cache.scale"),
    ("k_bias", "v_bias"),
    ("k_proj.output_scale", "v_proj.output_scale"),
)
_SCALES = 2  # of the pairs; the others hold numbers that no constant stands for


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
    1.0 for the missing one, on request (`--include KVC102`), a *guess*, which needs a rewritten shard.  No constant
    stands for a missing bias or output_scale, and none is written where a tensor of that name exists.

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
                name, fix = partner(ref.name), None
                if name and name not in ctx.checkpoint.tensors and ref.dtype in FLOAT_DTYPES:
                    fix = Remedy(Safety.GUESS, f"add {name} = 1, on request; the shard is rewritten")
                yield self.finding(ref, f"its partner {_PAIRS[number][1 - side]} is missing", fix=fix)


def partner(name: str) -> str | None:
    """The name of the scale that goes with this one of a KV cache; None where 1.0 could not stand for it."""
    for pair in _PAIRS[:_SCALES]:
        for side, leaf in enumerate(pair):
            if name.endswith("." + leaf):
                module = name[: -len(leaf) - 1]
                old, new = (".k_proj", ".v_proj")[:: -1 if side else 1]
                if module.endswith(old):
                    module = module.removesuffix(old) + new
                return f"{module}.{pair[1 - side]}"
    return None
