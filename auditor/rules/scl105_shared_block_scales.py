"""SCL105."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.groups import FusedSet
from auditor.rule import GroupRule
from auditor.tensorref import TensorRef
from quant.codes import E4M3

_FEWEST_VALUES = 8  # tensors of a few distinct scales coincide without anybody's fault
_STEP = 1 << 20


class SharedBlockScales(GroupRule):
    """Gate and up have byte-identical block scales over the whole tensor.

    ## What it checks
    Gate and up projections (also w1/w3) of one MLP or expert whose E4M3 block-scale tensors are equal, byte
    for byte, and take at least 8 different values.  Healthy pairs share about 8 % of their bytes.

    ## Why it matters
    The exporter took the element-wise maximum of the two projections' per-block amax, so every block of the
    smaller one is quantised with a scale that is too large.  Relative MSE rises by about a third, worse than
    plain max calibration (0.0066 to 0.0088 for gate, 0.0100 for up; plain max 0.0090).

    ## What engines do
    Nothing: the numbers are finite and less precise than they should be.

    ## Fix
    Requantise both from the source, *restored*.  Without it there is none: the codes were rounded already.

    ## References
    modelopt 0.45 to 0.47, experts held in a list of modules, static, MSE or Hessian recipes
    """

    code, title, severity = "SCL105", "gate and up share their block scales", Severity.WARNING

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        """One finding per pair, on the gate's scales."""
        if not group.is_gate_up or any(member.format.scale is not E4M3 for member in group.members):
            return
        gate, up = (member.scales for member in group.members)
        first, second = ctx.byte_stats(gate), ctx.byte_stats(up)
        if first is None or second is None or gate.shape != up.shape or first.checksum != second.checksum:
            return
        if first.high - first.low < _FEWEST_VALUES - 1 or not _identical(gate, up, ctx):
            return
        message = f"all {first.size} block scale bytes equal those of {group.leaves[1]}"
        fix = Remedy(Safety.RESTORED, f"requantise {group.label} from the source")
        layer = group.members[0].name
        yield self.finding(gate, message, count=first.size, related=[up.name], fix=fix, layer=layer)


def _identical(gate: TensorRef, up: TensorRef, ctx: Context) -> bool:
    """Whether the bytes are equal and take enough different values; read again, since this is rare."""
    values: set[int] = set()
    for at in range(0, gate.nbytes, _STEP):
        length = min(_STEP, gate.nbytes - at)
        raw = ctx.read(gate, at, length)
        if raw != ctx.read(up, at, length):
            return False
        values.update(raw)
    return len(values) >= _FEWEST_VALUES
