"""ACT101, ACT105, ACT104: activation scales that calibration never measured, mended by policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from auditor.finding import Finding, Safety
from auditor.groups import FusedSet
from auditor.layer import QuantizedLayer
from auditor.peers import FAR, amax_of, input_faulty, plausible
from auditor.tensorref import TensorRef
from quant.activation import LAST_RESORT, Policy
from quant.scheme import GlobalScale
from repair.fixes.desk import Desk, float_bytes
from repair.fixes.proposal import Edit, Left, Proposal


class Choice(NamedTuple):
    """What an unusable scale becomes: its bytes, as a number, how safe that is, and why."""

    raw: bytes
    value: float
    safety: Safety
    reason: str


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """The unusable values of one activation scale tensor."""
    layer = desk.layer(finding)
    ref = layer.input_scale if layer else None
    if layer is None or ref is None or finding.fix is None:
        if finding.fix is not None:
            yield Left(finding.code, finding.tensor, "no layer has this scale")
        return
    if finding.code == "ACT104":
        bad = [0]
    else:
        trusted = _trusted(layer, desk)
        bad = [i for i, v in enumerate(desk.values(ref)) if input_faulty(v) or not _usable(layer, v, trusted)]
    if not bad:
        return
    values = desk.values(ref)
    choice = _choose(layer, ref, [values[i] for i in bad], desk)
    if isinstance(choice, str):
        yield Left(finding.code, finding.tensor, choice, len(bad))
        return
    if any(values[i] < 0 for i in bad):
        reason = f"a negative scale is a fault of the exporter; {choice.reason}"
        choice = Choice(choice.raw, choice.value, Safety.GUESS, reason)
    change = f"{values[bad[0]]:.6g} -> {choice.value:.6g}"
    yield Proposal(
        finding.code,
        finding.tensor,
        choice.safety,
        choice.reason,
        len(bad),
        change,
        _edits(layer, ref, bad, choice.raw, desk),
        (layer.name,),
    )


def _usable(layer: QuantizedLayer, value: float, trusted: list[float]) -> bool:
    if not plausible(layer, value):
        return False
    usual = median(trusted) if len(trusted) >= 3 else None
    return usual is None or usual / FAR <= amax_of(layer, value) <= usual * FAR


def peers(layer: QuantizedLayer, desk: Desk) -> tuple[QuantizedLayer, ...]:
    """The same projection of all experts beside the layer; the layer alone where it is no expert."""
    return desk.ctx.peers.get(layer.name, (layer,))


def _trusted(layer: QuantizedLayer, desk: Desk) -> list[float]:
    """The amaxes of a projection that stay trusted once the others took the largest of them.

    Those far from the median are not; and when the mended ones have moved the median, neither are those far from it.
    """
    members = peers(layer, desk)
    known = desk.done_amaxes.get(members[0].name)
    if known is not None:
        return known
    stored = [
        (m, desk.ctx.scalar(m.input_scale)) for m in members if m.input_scale is not None and m.input_scale.size == 1
    ]
    good = [amax_of(m, v) for m, v in stored if v is not None and plausible(m, v)]
    while len(good) >= 3:
        usual = median(good)
        full = [*good, *[max(a for a in good if a <= usual * FAR)] * (len(stored) - len(good))]
        middle = median(full)
        kept = [a for a in good if usual / FAR <= a <= usual * FAR and middle / FAR <= a <= middle * FAR]
        if kept == good or not kept:
            break
        good = kept
    desk.done_amaxes[members[0].name] = good
    return good


def _choose(layer: QuantizedLayer, ref: TensorRef, bad: Sequence[float], desk: Desk) -> Choice | str:
    """The replacement, or why there is none."""
    policy, divides = desk.options.policy, layer.format.global_scale is GlobalScale.DIVIDE
    if policy is Policy.PEER_MAX:
        return _peer_max(layer, ref, desk)
    zero = math.isinf if divides else (lambda v: v == 0)
    if policy is Policy.MIN_POSITIVE:
        if not all(zero(v) for v in bad):
            return "min-positive mends exact zeros only"
        good = [v for v in desk.values(ref) if plausible(layer, v)]
        best = (max if divides else min)(good) if good else float(LAST_RESORT)
        if divides and not good:
            best = 1 / best
        reason = f"min-positive: {'the smallest of the tensor' if good else '1e-8'}"
        return _encoded(best, ref, Safety.GUESS, reason)
    floor = desk.options.floor or 0.0
    return _encoded(floor, ref, Safety.GUESS, f"floor {floor:g}")


def _encoded(value: float, ref: TensorRef, safety: Safety, reason: str) -> Choice | str:
    raw = float_bytes(value, ref.dtype)
    return Choice(raw, value, safety, reason) if raw is not None else f"stored as {ref.dtype}, which is not a float"


def _peer_max(layer: QuantizedLayer, ref: TensorRef, desk: Desk) -> Choice | str:
    members = [m for m in peers(layer, desk) if m is not layer and m.input_scale is not None]
    trusted = _trusted(layer, desk)
    key = (peers(layer, desk)[0].name, ref.dtype)
    if trusted and key not in desk.done_best:  # a scale that is mended is not a trusted one: all share the answer
        desk.done_best[key] = _largest(peers(layer, desk), ref, trusted, desk)
    best = desk.done_best.get(key)
    if best is not None and best[0] == desk.ctx.raw(ref):  # a placeholder is trusted, too: the largest of the others
        best = _largest(members, ref, trusted, desk)
    if best is not None:
        enough = 2 * len(trusted) >= len(members)
        raw, value = best
        return Choice(
            raw,
            value,
            Safety.BOUNDED if enough else Safety.GUESS,
            f"peer-max: the largest of {len(trusted)} plausible ones among {len(members)} peers",
        )
    own = [v for v in desk.values(ref) if plausible(layer, v)]
    if own:  # one number per expert in this tensor
        divides = layer.format.global_scale is GlobalScale.DIVIDE
        safety = Safety.BOUNDED if 2 * len(own) >= ref.size else Safety.GUESS
        return _encoded(
            min(own) if divides else max(own), ref, safety, f"peer-max: the largest of the tensor's {len(own)}"
        )
    group = desk.ctx.fused.get(layer.name)
    siblings = [m for m in group.members if m is not layer] if group else []
    best = _largest(siblings, ref, [], desk)
    if best is not None:
        return Choice(best[0], best[1], Safety.GUESS, "peer-max: the largest of the fused set")
    return "no plausible peer to take it from: choose --policy min-positive or floor=VALUE"


def _largest(
    members: Sequence[QuantizedLayer], ref: TensorRef, trusted: list[float], desk: Desk
) -> tuple[bytes, float] | None:
    """Bytes and value of the member's scale that stands for the largest amax; of ``trusted`` ones, if any are given."""
    best: tuple[float, bytes, float] | None = None
    for member in members:
        other, value = member.input_scale, desk.ctx.scalar(member.input_scale)
        if other is None or value is None or other.dtype != ref.dtype or not plausible(member, value):
            continue
        amax = amax_of(member, value)
        if (trusted and amax not in trusted) or (best is not None and amax <= best[0]):
            continue
        best = (amax, desk.ctx.read(other, 0, other.nbytes), value)
    return best[1:] if best else None


def _edits(layer: QuantizedLayer, ref: TensorRef, bad: list[int], raw: bytes, desk: Desk) -> Iterator[Edit]:
    for i in bad:
        yield Edit(ref, i * ref.itemsize, raw)
    group = desk.ctx.fused.get(layer.name)
    if group is not None:  # what is mended must not disagree with its set
        yield from equalised(group, desk)


def equalised(group: FusedSet, desk: Desk) -> Iterator[Edit]:
    """The set's largest usable activation scale (smallest divisor) for all usable members, where they differ."""
    known = []
    for member in group.members:
        ref = member.input_scale
        if ref is None or ref.size != 1 or not member.format.is_fp4():
            continue
        value = desk.values(ref)[0]
        if plausible(member, value):
            known.append((amax_of(member, value), desk.raw(ref), ref))
    if len({raw for _, raw, _ in known}) < 2 or len({ref.dtype for *_, ref in known}) > 1:
        return
    _, best, _ = max(known, key=lambda k: k[0])
    for _, raw, ref in known:
        if raw != best:
            yield Edit(ref, 0, best)


def best_of(members: Sequence[QuantizedLayer], desk: Desk) -> tuple[TensorRef, int] | None:
    """The scalar that stands for the largest amax, as it will be, among plausible ones, and how many there are."""
    found = []
    for member in members:
        ref = member.input_scale
        if ref is None or ref.size != 1:
            continue
        value = desk.values(ref)[0]
        if plausible(member, value):
            found.append((amax_of(member, value), ref.name, ref))
    return (max(found)[2], len(found)) if found else None
