"""ACT102: one activation scale for a fused set; ACT106: zeros in a pre_quant_scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.finding import Finding, Safety
from auditor.formats.base import Role
from auditor.groups import FusedSet
from auditor.probes import decode_floats
from quant.activation import LAST_RESORT, Policy
from repair.fixes.desk import Desk, float_bytes
from repair.fixes.input_scale import equalised
from repair.fixes.proposal import Edit, Left, Proposal


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """The set's largest activation scale for all."""
    layer = desk.layer(finding)
    names = {finding.tensor, *finding.related}
    known = desk.ctx.fused.get(layer.name) if layer else None
    groups = (*([known] if known else []), *desk.ctx.groups)
    group = next((g for g in groups if layer in g.members and names <= _scales(g)), None)
    if group is None or finding.fix is None:
        return
    edits = list(equalised(group, desk))
    if not edits:
        return
    new = decode_floats(edits[0].new, edits[0].ref.dtype)[0]
    old = desk.values(edits[0].ref)[0]
    more = f"; and {len(edits) - 1} more" if len(edits) > 1 else ""
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.BOUNDED,
        "the set's largest activation scale for all: a larger one clips nothing",
        len(edits),
        f"{old:.6g} -> {new:.6g}{more}",
        edits,
        tuple(m.name for m in group.members),
        group="/".join(m.leaf for m in group.members),
    )


def _scales(group: FusedSet) -> set[str]:
    """Names of the set's activation scales."""
    return {m.input_scale.name for m in group.members if m.input_scale}


def pre_quant(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """ACT106: zeros become the tensor's smallest positive value, or 1e-8, or the floor."""
    layer = desk.layer(finding)
    ref = layer.get(Role.PRE_QUANT) if layer else None
    if layer is None or ref is None:
        return
    values = np.array(desk.values(ref))
    zeros = np.flatnonzero(values == 0)
    other = int(np.count_nonzero(~np.isfinite(values) | (values < 0)))
    if other:  # a negative value makes the tensor an error: nothing in it is changed
        reason = "NaN, infinite or negative channels need another calibration; nothing in the tensor is changed"
        yield Left(finding.code, finding.tensor, reason, finding.count)
        return
    if not zeros.size:
        return
    live = values[values > 0]
    new = float(live.min()) if live.size else float(LAST_RESORT)
    reason = "min-positive: the smallest positive channel" if live.size else "min-positive: 1e-8"
    if desk.options.policy is Policy.FLOOR and desk.options.floor:
        new, reason = desk.options.floor, f"floor {desk.options.floor:g}"
    raw = float_bytes(new, ref.dtype)
    if raw is None or not any(raw):
        yield Left(finding.code, finding.tensor, f"{new:g} cannot be stored as {ref.dtype}", int(zeros.size))
        return
    edits = [Edit(ref, int(i) * ref.itemsize, raw) for i in zeros]
    yield Proposal(
        finding.code, finding.tensor, Safety.GUESS, reason, int(zeros.size), f"0 -> {new:.6g}", edits, (layer.name,)
    )  # fmt: skip
