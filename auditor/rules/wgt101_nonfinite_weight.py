"""WGT101."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.formats.base import SCALE_ROLES, Role
from auditor.layer import QuantizedLayer
from auditor.probes import CodeStats, FloatStats
from auditor.rule import CheckpointRule


class NonFiniteWeight(CheckpointRule):
    """A weight is NaN or infinite.

    ## What it checks
    At full depth: every value of the BF16, F16, F32 and F64 tensors that are not scales, and every byte of FP8
    weights.  FP8 weights under a scale that is zero, NaN, infinite or negative are left to WGT102.

    ## Why it matters
    One NaN in a norm or an embedding makes every answer NaN; one in a rarely used expert makes some of them.

    ## What engines do
    They load it.

    ## Fix
    Copy the tensor from the source, *restored*.  FP8 NaN bytes from an overflowing cast keep their sign: 0x7E
    or 0xFE is nearest, a *guess*.

    ## References
    compressed-tensors#832, compressed-tensors#854
    """

    code, title, severity, needs = "WGT101", "NaN or infinite weight", Severity.ERROR, Depth.FULL

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per tensor."""
        cache = {ref.name for ref in ctx.recognised.kv}
        for name, stats in ctx.measured.stats.items():
            if not isinstance(stats, FloatStats | CodeStats) or not stats.nan.count + stats.inf.count:
                continue
            layer, role = ctx.recognised.roles.get(name, (None, None))
            if role in SCALE_ROLES or name in cache or (role is Role.CODES and _is_left(layer, ctx)):
                continue
            count = stats.nan.count + stats.inf.count
            ref = ctx.checkpoint.tensors[name]
            places = ctx.places(ref, sorted(stats.nan.first + stats.inf.first))
            message = f"{stats.nan.count} NaN and {stats.inf.count} infinite of {ref.size} values"
            fix = Remedy(Safety.RESTORED, "copy or requantise the tensor from the source")
            yield self.finding(ref, message, count=count, places=places, fix=fix, layer=layer.name if layer else "")


def _is_left(layer: QuantizedLayer | None, ctx: Context) -> bool:
    """Whether WGT102 speaks of the layer's NaN bytes, with the remedy that the scale allows."""
    if layer is None or layer.format.scale is not None or layer.codes.dtype != "F8_E4M3":
        return False
    stats = ctx.float_stats(layer.scales)
    return stats is not None and bool(stats.bad or stats.zeros.count or stats.negative.count)
