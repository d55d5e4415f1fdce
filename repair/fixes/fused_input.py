"""ACT102: one activation scale for a fused set; ACT106: zeros in a pre_quant_scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.finding import Finding, Safety
from auditor.formats.base import Role
from auditor.groups import FusedSet
from auditor.peers import sound, spread
from auditor.probes import decode_floats
from quant.activation import Fill, Policy, fill
from quant.errors import NumericError
from repair.fixes.desk import Desk, scale_bytes
from repair.fixes.input_scale import equalised, usable
from repair.fixes.proposal import Edit, Left, Proposal


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """The set's largest activation scale for all."""
    layer = desk.layer(finding)
    names = {finding.tensor, *finding.related}
    known = desk.ctx.fused.get(layer.name) if layer else None
    groups = (*([known] if known else []), *desk.ctx.groups)
    group = next((g for g in groups if layer in g.members and names <= _scales(g)), None)
    if group is None:
        return
    members = [m for m in group.members if m.input_scale is not None and m.input_scale.size == 1]
    lost = [m.leaf for m in members if not (m.format.is_fp4() and sound(m, desk.ctx, desk.values_of(m.input_scale)))]
    if lost and len({desk.raw(m.input_scale) for m in members if m.input_scale}) > 1:
        reason = f"{', '.join(lost)}: an activation scale that cannot be trusted, and is not mended with these options"
        yield Left(finding.code, finding.tensor, reason)
        return
    edits = list(equalised(group, desk))
    if not edits:
        if len({tuple(desk.values(m.input_scale)) for m in members if m.input_scale}) > 1:
            reason = "too far apart, or of another dtype: which of them is right is not known"
            yield Left(finding.code, finding.tensor, reason)
        return
    new = decode_floats(edits[0].new, edits[0].ref.dtype)[0]
    old = desk.values(edits[0].ref)[0]
    amaxes = [amax for amax, *_ in usable(group, desk)]
    more = f"; and {len(edits) - 1} more" if len(edits) > 1 else ""
    yield Proposal(
        finding.code,
        finding.tensor,
        spread(max(amaxes) / min(amaxes)),
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
    """ACT106: zeros become the tensor's smallest positive value, or 1e-8, or the floor; a channel has no peers."""
    layer = desk.layer(finding)
    ref = layer.get(Role.PRE_QUANT) if layer else None
    if layer is None or ref is None:
        return
    floor = desk.options.floor if desk.options.policy is Policy.FLOOR else None
    try:
        made = fill(np.array(desk.values(ref)), Fill(Policy.MIN_POSITIVE if floor is None else Policy.FLOOR, (), floor))
    except NumericError as error:
        reason = f"another calibration is needed, nothing in the tensor is changed: {error}"
        yield Left(finding.code, finding.tensor, reason, finding.count)
        return
    zeros = np.flatnonzero(made.zeros)
    if not zeros.size:
        return
    raw = scale_bytes(made.value, ref.dtype)
    if isinstance(raw, str):
        yield Left(finding.code, finding.tensor, raw, int(zeros.size))
        return
    smallest = "the smallest positive channel" if not made.zeros.all() else "1e-8"
    reason = f"min-positive: {smallest}" if floor is None else f"floor {floor:g}"
    edits = [Edit(ref, int(i) * ref.itemsize, raw) for i in zeros]
    change = f"0 -> {made.value:.6g}"
    yield Proposal(
        finding.code, finding.tensor, Safety.GUESS, reason, int(zeros.size), change, edits, (layer.name,)
    )  # fmt: skip
