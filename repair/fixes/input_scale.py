"""ACT101, ACT105, ACT104: activation scales that calibration never measured, mended by policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from auditor.finding import Finding, Safety
from auditor.groups import FusedSet
from auditor.layer import QuantizedLayer
from auditor.peers import FAR, amax_of, company, plausible, projection, sound
from auditor.tensorref import TensorRef
from quant.activation import Fill, Policy, is_zero, replacement
from quant.errors import NumericError
from quant.scheme import GlobalScale
from repair.fixes.desk import Desk, scale_bytes
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
    if layer is None or ref is None:
        yield Left(finding.code, finding.tensor, "no layer has this scale")
        return
    values = desk.values(ref)
    bad = _bad(layer, values, desk)
    if not bad:
        return
    choice = choose(layer, ref.dtype, [values[i] for i in bad], desk)
    if isinstance(choice, str):
        yield Left(finding.code, finding.tensor, choice, len(bad))
        return
    if any(values[i] < 0 for i in bad):
        reason = f"a negative scale is a fault of the exporter; {choice.reason}"
        choice = choice._replace(safety=Safety.GUESS, reason=reason)
    final, others = _in_set(layer, choice.value, desk)
    change = f"{values[bad[0]]:.6g} -> {final:.6g}" + f"; and {others} more of its set" * bool(others)
    if final != choice.value:
        choice = choice._replace(reason=f"{choice.reason}: {choice.value:.6g}, but its set has a larger one")
    yield Proposal(
        finding.code,
        finding.tensor,
        choice.safety,
        choice.reason,
        len(bad),
        change,
        _edits(layer, ref, bad, choice.raw, desk),
        _touched(layer, others, desk),
    )


def _touched(layer: QuantizedLayer, others: int, desk: Desk) -> tuple[str, ...]:
    """The layer, and its fused set where others of it change with it."""
    group = desk.ctx.fused.get(layer.name) if others else None
    return tuple(m.name for m in group.members) if group else (layer.name,)


def _in_set(layer: QuantizedLayer, value: float, desk: Desk) -> tuple[float, int]:
    """What a new scale becomes once it agrees with its fused set, and how many of the set's others change with it."""
    group = desk.ctx.fused.get(layer.name)
    others = [amax for amax, _, ref in usable(group, desk) if ref is not layer.input_scale] if group else []
    amax = amax_of(layer, value)
    top = max([amax, *others])
    if not others or not plausible(layer, value) or top > FAR * min([amax, *others]):
        return value, 0
    unit = amax / value if not divides(layer) else amax * value
    return (value if top == amax else top / unit if not divides(layer) else unit / top), sum(o != top for o in others)


def _bad(layer: QuantizedLayer, values: Sequence[float], desk: Desk) -> list[int]:
    """Which values are neither trusted as they are stored nor mended since."""
    stored, trusted = desk.ctx.values(layer.input_scale) or (), projection(layer, desk.ctx).trusted
    return [
        i
        for i, value in enumerate(values)
        if not ((layer.name, i) in trusted if i < len(stored) and value == stored[i] else plausible(layer, value))
    ]


def choose(layer: QuantizedLayer, dtype: str, bad: Sequence[float], desk: Desk) -> Choice | str:
    """What the unusable values of an activation scale, or one that is missing, become; or why nothing stands for them.

    Stored in ``dtype``.
    """
    policy, floor = desk.options.policy, desk.options.floor
    inverse, ref = divides(layer), layer.input_scale
    live, whose = [v for v in desk.values(ref) if plausible(layer, v)] if ref is not None else [], "the tensor"
    group = desk.ctx.fused.get(layer.name)
    if not live and group is not None:
        live, whose = [v for *_, held in usable(group, desk) for v in desk.values(held)], "its fused set"
    found = company(layer, desk.ctx, desk.values_of)
    zeros = bool(is_zero(np.array(bad), inverse).all())
    if policy is Policy.MIN_POSITIVE and not zeros:
        return "min-positive mends exact zeros only"
    if policy is Policy.PEER_MAX and found is None:
        return f"no plausible peer to take it from: choose --policy {'min-positive or ' * zeros}floor=VALUE"
    peers = (np.array(found.values),) if found else ()
    safety, reason = Safety.GUESS, f"min-positive: {f'the smallest of {whose}' if live else '1e-8'}"
    if policy is Policy.PEER_MAX and found is not None:
        safety, reason = found.safety, str(found)
    elif policy is Policy.FLOOR:
        reason = f"floor {floor:g}{', as a divisor' if inverse else ''}"
    try:
        value = replacement(np.array(live), Fill(policy, peers, floor, inverse))
    except NumericError as error:
        return str(error)
    raw = scale_bytes(value, dtype)
    return Choice(raw, value, safety, reason) if isinstance(raw, bytes) else raw


def divides(layer: QuantizedLayer) -> bool:
    """Whether the layer's activation scale is a divisor."""
    return layer.format.global_scale is GlobalScale.DIVIDE


def _edits(layer: QuantizedLayer, ref: TensorRef, bad: list[int], raw: bytes, desk: Desk) -> Iterator[Edit]:
    for i in bad:
        yield Edit(ref, i * ref.itemsize, raw)
    group = desk.ctx.fused.get(layer.name)
    if group is not None:  # what is mended must not disagree with its set
        yield from equalised(group, desk)


def usable(group: FusedSet, desk: Desk) -> list[tuple[float, bytes, TensorRef]]:
    """Amax, bytes and tensor of the set's activation scales that may be taken from, as they will be."""
    known = []
    for member in group.members:
        ref = member.input_scale
        if ref is None or ref.size != 1 or not member.format.is_fp4():
            continue
        values = desk.values(ref)
        if sound(member, desk.ctx, values):
            known.append((amax_of(member, values[0]), desk.raw(ref), ref))
    return known


def equalised(group: FusedSet, desk: Desk) -> Iterator[Edit]:
    """The set's largest usable activation scale (smallest divisor) for all usable members, where they differ."""
    known = usable(group, desk)
    if len({raw for _, raw, _ in known}) < 2 or len({ref.dtype for *_, ref in known}) > 1:
        return
    if max(amax for amax, *_ in known) > FAR * min(amax for amax, *_ in known):
        return  # one of them is not of these hidden states, and nothing tells which
    _, best, _ = max(known, key=lambda k: k[0])
    for _, raw, ref in known:
        if raw != best:
            yield Edit(ref, 0, best)
