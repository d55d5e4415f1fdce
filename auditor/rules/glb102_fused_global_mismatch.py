"""GLB102."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.formats.base import Convention
from auditor.groups import FusedSet
from auditor.layer import QuantizedLayer
from auditor.rule import GroupRule
from auditor.scalars import faulty


class FusedGlobalMismatch(GroupRule):
    """Projections that a server fuses have different global scales.

    ## What it checks
    The bits of weight_scale_2 (weight_global_scale) over q/k/v, gate/up, w1/w3 and the other sets that loaders
    fuse, within and across shards.  Bits, not a tolerance: `allclose` with its absolute 1e-8 accepts any two
    small scales.

    ## Why it matters
    A fused matrix has one global scale.  The loader picks one of the values and leaves the block scales as
    they are, so the other projections come out wrong by the ratio: 10x has been seen in published models.

    ## What engines do
    vLLM: linear layers warn and take the maximum (of divisors, too), MoE takes the gate's.  SGLang: maximum,
    the gate's or both, by backend; W4A16 compressed-tensors refuses.  TensorRT-LLM: linear asserts equality,
    MoE takes the maximum.  None rescales.

    ## Fix
    The set's maximum for all, and block scales re-rounded to match, codes untouched: *exact* where the ratio is
    a power of two and nothing underflows, else *bounded* (at ratio 1.25 the error falls from 25.5 % to 2.7 %).
    With the source all members are requantised with the shared amax, *restored*.

    ## References
    vllm#54974 (69 % of pairs, up to 10x), vllm#54150, TensorRT-LLM#14199, Model-Optimizer#1403,
    Model-Optimizer#1411; llm-compressor's model_free_ptq never fuses expert gate/up
    """

    code, title, severity, needs = "GLB102", "fused projections disagree on the global scale", Severity.ERROR, Depth.SCALARS

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        """One finding per fused set, on its first member."""
        members = [m for m in group.members if m.global_scale is not None and m.format.is_fp4()]
        known = [(m, ctx.values(m.global_scale), ctx.raw(m.global_scale)) for m in members]
        usable = [(m, values, raw) for m, values, raw in known if values and raw and not any(map(faulty, values))]
        if len(usable) < 2 or len({raw for _, _, raw in usable}) == 1:
            return
        if len({(m.format.global_scale, m.global_scale.dtype if m.global_scale else "") for m, _, _ in usable}) > 1:
            return  # other rules speak of mixed layouts and dtypes
        lengths = {len(values) for _, values, _ in usable}
        if len(lengths) > 1:
            return
        ratios = [max(column) / min(column) for column in zip(*(values for _, values, _ in usable), strict=True)]
        count = sum(ratio != 1.0 for ratio in ratios)
        if not count:
            return
        shown = ", ".join(f"{m.leaf} {values[0]:.6g}" for m, values, _ in usable) if len(ratios) == 1 else (
            f"{count} of {len(ratios)} experts differ"
        )
        first = usable[0][0]
        ref = first.global_scale
        if ref is None:
            return
        message = f"fused set {group.label}: {shown}; ratio up to {max(ratios):.4g}"
        yield self.finding(
            ref,
            message,
            count=count,
            places=[place for m, _, _ in usable for place in _own(m, ref.name, ctx)],
            related=[m.global_scale.name for m, _, _ in usable[1:] if m.global_scale],
            fix=_fix(ratios, first),
            layer=first.name,
        )


def _own(member: QuantizedLayer, name: str, ctx: Context) -> tuple:  # type: ignore[type-arg]
    ref = member.global_scale
    return ctx.places(ref, [0]) if ref is not None and ref.name == name else ()


def _fix(ratios: list[float], member: QuantizedLayer) -> Remedy:
    word = "smallest divisor" if member.format.global_scale is Convention.DIVIDE else "largest scale"
    if all(ratio.hex().startswith("0x1.0000000000000p") for ratio in ratios):
        return Remedy(Safety.EXACT, f"the {word} for all, block scales shifted: the ratio is a power of two")
    return Remedy(Safety.BOUNDED, f"the {word} for all, block scales re-rounded, codes untouched")
