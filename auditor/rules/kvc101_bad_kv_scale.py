"""KVC101."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import layer_number
from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.jsonfile import Json, table
from auditor.rule import CheckpointRule
from auditor.scalars import describe, faulty


class BadKvScale(CheckpointRule):
    """A KV-cache scale is zero, NaN, infinite or negative, or not a scalar.

    ## What it checks
    k_scale, v_scale, q_scale, kv_scale and k_cache.scale wherever they hang; the k_bias and v_bias of NVFP4
    caches for NaN and infinity.  Exactly 1.0 is legal: a cache cast with a constant amax.
    One scale per head is information: not every engine takes it.  num_key_value_heads and num_attention_heads say
    how many there are, by layer where they are lists.

    ## Why it matters
    Keys and values are divided by it before they are cached.

    ## What engines do
    vLLM uses k > 0 and v > 0, treats both below 0 as 1.0, and asserts on 0 and NaN.  SGLang turns values up to 0
    into 1.0 and accepts infinity.

    ## Fix
    1.0, on an explicit option, a *guess*: calibration is lost.

    ## References
    sglang#40243
    """

    code, title, severity, needs = "KVC101", "unusable KV-cache scale", Severity.ERROR, Depth.SCALARS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per scale."""
        for ref in ctx.recognised.kv:
            bias = ref.name.endswith("_bias")
            stats, values = ctx.float_stats(ref), ctx.values(ref)
            if bias:
                if stats is not None and stats.bad:
                    places = ctx.places(ref, sorted(stats.nan.first + stats.inf.first))
                    yield self.finding(
                        ref, f"{stats.bad} of {stats.size} values not finite", count=stats.bad, places=places
                    )
                continue
            if not ref.is_scalar:
                per_head = ref.size in heads(ctx.checkpoint.config, layer_number(ref.name))
                message = f"shape {list(ref.shape)}: " + ("one scale per head" if per_head else "not a scalar")
                yield self.finding(ref, message, severity=Severity.INFO if per_head else Severity.WARNING)
            if values is None:
                continue
            bad = [i for i, value in enumerate(values) if faulty(value)]
            if bad:
                message = f"{ref.name.rpartition('.')[2]} is {describe([values[i] for i in bad])}"
                fix = Remedy(Safety.GUESS, "write 1.0, or drop both scales, on request")
                yield self.finding(ref, message, count=len(bad), places=ctx.places(ref, bad), fix=fix)


def heads(config: Json | None, layer: int | None) -> set[int]:
    """The numbers of heads that the configuration declares, for scales per head (compressed-tensors' attn_head).

    A list holds one number per layer, of which that of ``layer`` counts.
    """
    found: set[int] = set()
    for part in (table(config), table(table(config).get("text_config"))):
        for key in ("num_key_value_heads", "num_attention_heads"):
            value = part.get(key)
            if isinstance(value, list):
                value = value[layer] if layer is not None and layer < len(value) else None
            if isinstance(value, int):
                found.add(value)
    return found
