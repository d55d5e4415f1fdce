"""Activation scales in company: what an expert's peers say of its own."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from auditor.context import Context
from auditor.finding import Remedy, Safety
from auditor.layer import QuantizedLayer
from auditor.scalars import faulty, storable
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.scheme import GlobalScale

# An activation's amax outside this range was never measured on a model.
PLAUSIBLE_AMAX = (1e-6, 1e6)
FAR = 1e3  # a scale this many times off its peers' median is not of the same hidden states
_OUTLIERS = 32  # so many of the largest may be left out, each for being alone
UNLIKE = 4.0  # a placeholder this many times off its peers does harm

_NVFP4 = {
    float(np.float32(0.5 / 2688)): "modelopt's fallback (amax 0.5)",
    float(np.float32(1 / 448)): "what modelopt 0.47 writes for an amax of zero or NaN (1/448)",
}
Values = Callable[[TensorRef | None], Sequence[float] | None]


def amax_of(layer: QuantizedLayer, value: float) -> float:
    """The activation amax that an input scale stands for; inf where the stored divisor is 0."""
    unit = layer.format.amax_unit or 448.0
    if layer.format.global_scale is GlobalScale.DIVIDE:
        return unit / value if value else math.inf
    return unit * value


def plausible(layer: QuantizedLayer, value: float) -> bool:
    """Whether an input scale could come from a calibration, taken by itself."""
    return not faulty(value) and PLAUSIBLE_AMAX[0] <= amax_of(layer, value) <= PLAUSIBLE_AMAX[1]


def near(amax: float, usual: float) -> bool:
    """Whether an amax is less than FAR times off the usual one."""
    return usual / FAR <= amax <= usual * FAR


def spread(ratio: float) -> Safety:
    """How safe it is to give a fused set its largest activation scale, where they are ``ratio`` apart.

    A larger one clips nothing, but what is UNLIKE times too large costs small activations their precision.
    """
    return Safety.BOUNDED if ratio <= UNLIKE else Safety.GUESS


def unlike(amax: float, usual: float | None) -> bool:
    """Whether an amax is more than UNLIKE times off the usual one, where that is known."""
    return usual is not None and not usual / UNLIKE <= amax <= usual * UNLIKE


def placeholder(layer: QuantizedLayer, value: float) -> str:
    """Which constant of an exporter that measured nothing a scale is, "" when it is none."""
    if layer.format.unaudited:
        return ""
    if layer.format.global_scale is GlobalScale.MULTIPLY and layer.format.amax_unit == 2688.0:
        return _NVFP4.get(value, "")
    return "exactly 1.0" if value == 1.0 else ""


def siblings(layer: QuantizedLayer, ctx: Context) -> Sequence[QuantizedLayer]:
    """The same projection of the layer's other experts; none for a layer that is no expert."""
    return [peer for peer in ctx.peers.get(layer.name, ()) if peer is not layer]


def amaxes(layers: Iterable[QuantizedLayer], ctx: Context) -> list[float]:
    """The plausible activation amaxes of these layers; fused 3-D experts may have one for each expert."""
    found: list[float] = []
    for layer in layers:
        known = ctx.sound_amaxes.get(layer.name)
        if known is None:
            known = [amax_of(layer, v) for v in ctx.values(layer.input_scale) or () if plausible(layer, v)]
            ctx.sound_amaxes[layer.name] = known
        found += known
    return found


def typical(layers: Sequence[QuantizedLayer], ctx: Context) -> float | None:
    """The usual one of these layers' plausible amaxes, None when fewer than three are known or none is usual."""
    known = amaxes(layers, ctx)
    return _usual(known, layers, ctx) if len(known) >= 3 else None


def _usual(amaxes_: Sequence[float], layers: Sequence[QuantizedLayer], ctx: Context) -> float | None:
    """Median of the amaxes that belong together: of most of them, no two of which are FAR apart.

    Where two groups are equally large the one that is like other layers' amaxes counts; None when these do not tell.
    """
    known = sorted(amaxes_)
    ends = [bisect_right(known, low * FAR) for low in known]
    most = max(end - i for i, end in enumerate(ends))
    starts = [i for i, end in enumerate(ends) if end - i == most]
    groups = [known[i : i + most] for i in (starts[0], starts[-1])]
    if starts[-1] < starts[0] + most:
        return median(groups[0])
    here = {layer.name for layer in layers}
    others = amaxes((o for o in ctx.layers if o.leaf == layers[0].leaf and o.name not in here), ctx)
    likes = [sum(near(amax, median(group)) for amax in others) for group in groups]
    return None if likes[0] == likes[1] else median(groups[likes[1] > likes[0]])


class Projection(NamedTuple):
    """The stored activation scales of one projection over its experts: the trusted by layer and place, of how many.

    Trusted are the plausible ones that stay near the median once the others took the largest of them, but no
    placeholder that does harm.
    """

    trusted: Mapping[tuple[str, int], float]
    of: int


class Company(NamedTuple):
    """Scales that may stand for a layer's own, in its convention: out of how many, whose, and how safe that is."""

    values: Sequence[float]
    of: int
    whose: str
    safety: Safety

    def __str__(self) -> str:
        """Where the value comes from, in words."""
        return f"peer-max: the largest of {len(self.values)} plausible ones among {self.of} {self.whose}"


def alike(layer: QuantizedLayer, other: QuantizedLayer) -> bool:
    """Whether an activation scale means the same in both layouts."""
    return layer.format.scheme == other.format.scheme and layer.format.amax_unit == other.format.amax_unit


def projection(layer: QuantizedLayer, ctx: Context) -> Projection:
    """What is stored for the layer's projection: over all experts, whether they lie in one tensor or in many."""
    if layer.name not in ctx.projections:
        members = [m for m in ctx.peers.get(layer.name, (layer,)) if alike(m, layer)]
        ctx.projections.update(dict.fromkeys((m.name for m in members), _projection(members, ctx)))
    return ctx.projections[layer.name]


def _projection(members: Sequence[QuantizedLayer], ctx: Context) -> Projection:
    stored = [(m, i, v, amax_of(m, v)) for m in members for i, v in enumerate(ctx.values(m.input_scale) or ())]
    measured = [amax for m, _, v, amax in stored if plausible(m, v) and not placeholder(m, v)]
    likely = _usual(measured, members, ctx) if len(measured) >= 3 else None
    if likely is None and len(measured) >= 3:  # torn between two groups: none is trusted
        return Projection({}, len(stored))
    good = {
        (m.name, i): (v, amax)
        for m, i, v, amax in stored
        if plausible(m, v)
        and not (placeholder(m, v) and unlike(amax, likely))
        and (likely is None or near(amax, likely))
    }
    for _ in range(_OUTLIERS):
        known = [amax for _, amax in good.values()]
        top = max(known, default=0.0)
        filled = known + [top] * (len(stored) - len(known))
        usual = _usual(filled, members, ctx) if len(filled) >= 3 else top
        if usual is not None and all(near(amax, usual) for amax in known):
            break
        good = {key: (v, amax) for key, (v, amax) in good.items() if amax < top}  # alone it would make others odd
    return Projection({key: v for key, (v, _) in good.items()}, len(stored))


def sound(layer: QuantizedLayer, ctx: Context, now: Sequence[float] | None = None) -> bool:
    """Whether the layer's one activation scale may be taken from: trusted as stored, or changed since (``now``)."""
    stored = ctx.scalar(layer.input_scale)
    if now is not None and (len(now) != 1 or now[0] != stored):
        return len(now) == 1 and plausible(layer, now[0])
    return (layer.name, 0) in projection(layer, ctx).trusted and stored is not None


def company(layer: QuantizedLayer, ctx: Context, now: Values | None = None) -> Company | None:
    """Whose scales stand for the layer's own; None where there are none.

    For a scale that is wrong: the other experts', which see the same hidden states, then the fused set's.  For one that
    is missing the fused set's (values as they are ``now``), which is what a sound export has, then the other experts'.
    """
    ways = [_of_peers, _of_fused] if layer.input_scale is not None else [_of_fused, _of_peers]
    return next((found for way in ways if (found := way(layer, ctx, now or ctx.values)) is not None), None)


def _of_peers(layer: QuantizedLayer, ctx: Context, now: Values) -> Company | None:
    trusted, of = projection(layer, ctx)
    if layer.input_scale is not None:
        of -= 1  # what is mended is no peer of its own, and never a trusted one
    return _company(list(trusted.values()), of, "peers", Safety.BOUNDED)


def _of_fused(layer: QuantizedLayer, ctx: Context, now: Values) -> Company | None:
    group = ctx.fused.get(layer.name)
    members = [m for m in group.members if m is not layer and alike(m, layer) and m.input_scale] if group else []
    known = [(m, now(m.input_scale) or ()) for m in members]
    values = [held[0] for m, held in known if sound(m, ctx, held)]
    # Of a wrong scale the set says less than of a missing one: whatever spoiled it may have spoiled the set.
    safety = Safety.GUESS if layer.input_scale is not None else Safety.BOUNDED
    return _company(values, len(members), "of its fused set", safety)


def _company(values: Sequence[float], of: int, whose: str, safety: Safety) -> Company | None:
    return Company(values, of, whose, safety if 2 * len(values) >= of else Safety.GUESS) if values else None


def remedy(layer: QuantizedLayer, dtype: str, ctx: Context, policies: str = "floor=VALUE") -> Remedy | None:
    """What the layer's company allows, for a scale to be stored in ``dtype``: None where that holds no such number.

    ``policies``: those that need no company.
    """
    found = company(layer, ctx)
    if dtype not in FLOAT_DTYPES:
        return None
    if found is None:
        return Remedy(Safety.GUESS, f"no plausible peer: with --policy {policies}")
    best = (min if layer.format.global_scale is GlobalScale.DIVIDE else max)(found.values)
    if not storable(best, dtype):
        return None
    return Remedy(found.safety, f"{found}: amax {amax_of(layer, best):.4g}, scale {best:.6g}")
