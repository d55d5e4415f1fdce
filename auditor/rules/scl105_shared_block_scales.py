"""SCL105."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.groups import FusedSet
from auditor.layer import QuantizedLayer
from auditor.rule import GroupRule
from auditor.tensorref import TensorRef
from quant.codes import E4M3

_FEWEST_VALUES = 8  # tensors of a few distinct scales coincide without anybody's fault
_STEP = 1 << 20
_FIVE = 5  # code 5 is 3.0, 6 is 4.0, 7 is 6.0


class SharedBlockScales(GroupRule):
    """Gate and up have byte-identical block scales over the whole tensor.

    ## What it checks
    Gate and up projections (also w1/w3) of one MLP or expert whose E4M3 block-scale tensors are equal, byte
    for byte, and take at least 8 different values.  Healthy pairs share about 8 % of their bytes.
    Beside it stands a second sign: blocks whose largest code is 5 (3.0) or less, which calibration does not leave.

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
        shares = [share for member in group.members if (share := _short_blocks(member, ctx)) is not None]
        if shares:
            message += "; the largest value is 3 or less in " + ", ".join(
                f"{share:.0%} of {leaf}'s blocks" for share, leaf in zip(shares, group.leaves, strict=False)
            )
        fix = Remedy(Safety.RESTORED, f"requantise {group.label} from the source")
        layer = group.members[0].name
        yield self.finding(gate, message, count=first.size, related=[up.name], fix=fix, layer=layer)


def _short_blocks(layer: QuantizedLayer, ctx: Context) -> float | None:
    """Share of live blocks whose largest code is 5 (3.0) or less: their scale is larger than they need."""
    geometry = layer.geometry()
    if geometry is None or geometry.inner > 1 or not layer.codes.nbytes:
        return None
    length = min(_STEP, layer.codes.nbytes)
    packed = np.frombuffer(ctx.read(layer.codes, 0, length - length % geometry.unit), np.uint8)
    largest = np.maximum(packed & 7, packed >> 4 & 7).reshape(-1, geometry.unit).max(axis=1)
    live = np.count_nonzero(largest)
    return float(np.count_nonzero((largest > 0) & (largest <= _FIVE)) / live) if live else None


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
