"""GLB102."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.groups import FusedSet
from auditor.layer import QuantizedLayer
from auditor.rule import GroupRule
from auditor.scalars import factor, faulty, same_number, told_apart
from auditor.tensorref import TensorRef
from quant.codes import E4M3
from quant.scheme import GlobalScale

_WIDEST = E4M3.max / float(E4M3.values[0x08])  # above it 448 becomes subnormal

_ODD = 256.0  # 10x has been seen in published models


class FusedGlobalMismatch(GroupRule):
    """Projections that a server fuses have different global scales.

    ## What it checks
    The bits of weight_scale_2 (weight_global_scale) over q/k/v, gate/up, w1/w3 and the other sets that loaders
    fuse, within and across shards; the values, where the dtypes differ.  Bits, not a tolerance: `allclose` with its
    absolute 1e-8 accepts any two small scales.

    ## Why it matters
    A fused matrix has one global scale.  The loader picks one of the values and leaves the block scales as
    they are, so the other projections come out wrong by the ratio: 10x has been seen in published models.

    ## What engines do
    vLLM: linear layers warn and take the maximum (of divisors, too), MoE takes the gate's.  SGLang: maximum,
    the gate's or both, by backend; W4A16 compressed-tensors refuses.  TensorRT-LLM: linear asserts equality,
    MoE takes the maximum.  None rescales.

    ## Fix
    The set's maximum for all, and block scales re-rounded to match, codes untouched: *exact* where the ratio is
    a power of two and nothing underflows, else *bounded* (at ratio 1.25 the error falls from 25.5 % to 2.7 %), and a
    *guess* where the ratio is above 256.  Not where it is above 28 672, under which no block scale stays normal (one
    of the scales is wrong then, see GLB103), nor while the scales differ in dtype (FMT108 comes first).  With the
    source all members are requantised with the shared amax, *restored*.

    ## References
    vllm#54974 (69 % of pairs, up to 10x), vllm#54150, TensorRT-LLM#14199, Model-Optimizer#1403,
    Model-Optimizer#1411; llm-compressor's model_free_ptq never fuses expert gate/up
    """

    code, title, severity = "GLB102", "fused projections disagree on the global scale", Severity.ERROR
    needs = Depth.SCALARS

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        """One finding per fused set, on its first member."""
        known = []
        for member in group.members:
            ref, values, raw = member.global_scale, ctx.values(member.global_scale), ctx.raw(member.global_scale)
            if ref is not None and values and raw and member.format.is_fp4():
                known.append(_Known(member, ref, values, raw))
        first = known[0] if known else None
        if first is None or len(known) < 2 or len({k.raw for k in known}) == 1:
            return
        if any(not k.comparable(first) for k in known):
            return  # mixed layouts and shapes have rules of their own
        columns = [[k.values[i] for k in known] for i in range(len(first.values))]
        dtypes = len({k.ref.dtype for k in known})
        unlike = [i for i, column in enumerate(columns) if not same_number(column, dtypes)]
        if not unlike and dtypes > 1:
            return  # the same value, as far as each dtype holds it
        usable = [columns[i] for i in unlike if not any(map(faulty, columns[i]))]
        ratios = [max(column) / min(column) for column in usable]
        fixable = len(usable) == len(unlike) and dtypes == 1 and rescalable(ratios)
        shown = told_apart([(k.layer.leaf, k.values[0]) for k in known])
        if len(columns) > 1:
            shown = f"{len(unlike)} of {len(columns)} experts differ"
        yield self.finding(
            first.ref,
            f"fused set {group.label}: {shown}" + (f"; ratio up to {factor(max(ratios))}" if ratios else ""),
            count=max(1, len(unlike)),
            places=ctx.places(first.ref, unlike or [0]),
            related=[k.ref.name for k in known[1:]],
            fix=_fix(ratios, first.layer) if fixable else None,
            layer=first.layer.name,
        )


class _Known(NamedTuple):
    layer: QuantizedLayer
    ref: TensorRef
    values: list[float]
    raw: bytes

    def comparable(self, other: _Known) -> bool:
        same = self.layer.format.global_scale is other.layer.format.global_scale
        return same and len(self.values) == len(other.values)


def rescalable(ratios: Iterable[float]) -> bool:
    """Whether block scales can bear these ratios: where 448 itself becomes subnormal the set has no scale in common."""
    return all(ratio <= _WIDEST for ratio in ratios)


def rerounded(ratios: Iterable[float]) -> Safety:
    """How safe re-rounding is: where one scale is _ODD times another it may be the one that is wrong."""
    return Safety.BOUNDED if all(ratio <= _ODD for ratio in ratios) else Safety.GUESS


def _fix(ratios: list[float], member: QuantizedLayer) -> Remedy:
    word = "smallest divisor" if member.format.global_scale is GlobalScale.DIVIDE else "largest scale"
    if all(ratio.hex().startswith("0x1.0000000000000p") for ratio in ratios):
        return Remedy(Safety.EXACT, f"the {word} for all, block scales shifted: the ratio is a power of two")
    return Remedy(rerounded(ratios), f"the {word} for all, block scales re-rounded, codes untouched")
