"""ACT102."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Severity
from auditor.groups import FusedSet
from auditor.peers import FAR, plausible, sound, spread
from auditor.rule import GroupRule
from auditor.scalars import factor, same_number, told_apart


class FusedInputMismatch(GroupRule):
    """Projections that a server fuses have different activation scales.

    ## What it checks
    The bits of input_scale (input_global_scale) over q/k/v, gate/up, w1/w3 and the other fused sets.

    ## Why it matters
    The members read the same hidden states, so calibration cannot honestly give them different scales.

    ## What engines do
    TensorRT-LLM asserts exact equality and refuses the checkpoint.  vLLM and SGLang take the maximum, some
    SGLang MoE paths the minimum of the divisors.

    ## Fix
    The set's largest scale (smallest divisor) for all, *bounded*: a larger scale clips nothing.  A member whose
    own scale cannot be trusted (ACT101, ACT105, ACT104) is mended first, and the set with it.  For FP8, whose
    servers requantise to the maximum, this is information only, and nothing is changed.

    ## References
    The assertion in TensorRT-LLM's NVFP4 linear loader
    """

    code, title, severity = "ACT102", "fused projections disagree on the activation scale", Severity.WARNING
    needs = Depth.SCALARS

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        """One finding per fused set, on its first member."""
        known = []
        for member in group.members:
            ref, value, raw = member.input_scale, ctx.scalar(member.input_scale), ctx.raw(member.input_scale)
            if ref is not None and raw is not None and value is not None and not member.format.unaudited:
                known.append((member, ref, value, raw))
        dtypes = len({ref.dtype for _, ref, *_ in known})
        if len(known) < 2 or len({raw for *_, raw in known}) == 1:
            return
        if dtypes > 1 and same_number([value for *_, value, _ in known], dtypes):
            return
        member, ref, *_ = known[0]
        usable = [value for m, _, value, _ in known if plausible(m, value)]
        shown = told_apart([(m.leaf, value) for m, _, value, _ in known])
        ratio = max(usable) / min(usable) if usable else 1.0
        told = f"; ratio up to {factor(ratio)}" if len(usable) > 1 else ""
        fix = None
        if dtypes == 1 and ratio <= FAR and all(m.format.is_fp4() and sound(m, ctx) for m, *_ in known):
            fix = Remedy(spread(ratio), "the set's largest activation scale for all")
        yield self.finding(
            ref,
            f"fused set {group.label}: {shown}{told}",
            places=ctx.places(ref, [0]),
            related=[other.name for _, other, *_ in known[1:]],
            fix=fix,
            severity=self.severity if member.format.is_fp4() else Severity.INFO,
            layer=member.name,
        )
