"""ACT107."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.formats.base import Role
from auditor.groups import FusedSet
from auditor.rule import GroupRule

_LARGEST = 1 << 20


class FusedPreQuantMismatch(GroupRule):
    """Projections that a server fuses have different pre_quant_scales.

    ## What it checks
    The bytes of pre_quant_scale over q/k/v, gate/up and the other fused sets, and that all members have one.

    ## Why it matters
    A fused matrix has one input, which can be multiplied by one vector only.

    ## What engines do
    They load one member's vector for all.

    ## Fix
    None: the codes were made with the vector they came with.  Re-export with the members' smoothing shared.

    ## References
    modelopt shares it over gate and up before it exports
    """

    code, title, severity = "ACT107", "fused projections disagree on pre_quant_scale", Severity.ERROR
    whole = True  # in a single shard the vector of a member may just be elsewhere

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        """One finding per fused set, on the first member that has the vector."""
        refs = [(m, m.get(Role.PRE_QUANT)) for m in group.members if not m.format.unaudited]
        have = [(m, ref) for m, ref in refs if ref is not None and ref.nbytes <= _LARGEST]
        if not have:
            return
        layer, first = have[0]
        lack = [m.leaf for m, ref in refs if ref is None]
        raw = ctx.read(first, 0, first.nbytes)
        unlike = [ref.name for _, ref in have[1:] if ref.dtype != first.dtype or ctx.read(ref, 0, ref.nbytes) != raw]
        if not lack and not unlike:
            return
        message = f"fused set {group.label}: {len(unlike)} differ" + (f", {', '.join(lack)} have none" if lack else "")
        yield self.finding(first, message, count=len(unlike) + len(lack), related=unlike, layer=layer.name)
