"""Activation scales in company: what an expert's peers say of its own."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from auditor.context import Context
from auditor.finding import Remedy, Safety
from auditor.layer import QuantizedLayer
from auditor.scalars import faulty, subnormal
from quant.scheme import GlobalScale

# An activation's amax outside this range was never measured on a model.
PLAUSIBLE_AMAX = (1e-6, 1e6)
FAR = 1e3  # a scale this many times off its peers' median is not of the same hidden states
UNLIKE = 4.0  # a placeholder this many times off its peers does harm


def input_faulty(value: float) -> bool:
    """Whether an activation scale cannot be used at all: also when it is subnormal and 1 / scale overflows."""
    return faulty(value) or subnormal(value)


def amax_of(layer: QuantizedLayer, value: float) -> float:
    """The activation amax that an input scale stands for; inf where the stored divisor is 0."""
    unit = layer.format.amax_unit or 448.0
    if layer.format.global_scale is GlobalScale.DIVIDE:
        return unit / value if value else math.inf
    return unit * value


def plausible(layer: QuantizedLayer, value: float) -> bool:
    """Whether an input scale could come from a calibration, taken by itself."""
    return not input_faulty(value) and PLAUSIBLE_AMAX[0] <= amax_of(layer, value) <= PLAUSIBLE_AMAX[1]


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
    """Median of the plausible amaxes that belong together: of most of those known, no two of them FAR apart.

    None when fewer than three are known.  Where two groups are equally large the one that is like other layers' amaxes
    counts; None when these do not tell either.
    """
    known = sorted(amaxes(layers, ctx))
    if len(known) < 3:
        return None
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


def near(amax: float, usual: float) -> bool:
    """Whether an amax could be of the same hidden states as the usual one."""
    return usual / FAR <= amax <= usual * FAR


def remedy(layer: QuantizedLayer, peers: Sequence[QuantizedLayer], ctx: Context) -> Remedy:
    """What peers allow: bounded when at least half of them are plausible, a guess otherwise."""
    known = amaxes(peers, ctx)
    if known and 2 * len(known) >= len(peers):
        scale = max(known) / (layer.format.amax_unit or 448.0)
        note = f"peer-max: amax {max(known):.4g} of {len(known)} peers, scale {scale:.6g}"
        return Remedy(Safety.BOUNDED, note)
    group = ctx.fused.get(layer.name)
    fused = amaxes([m for m in group.members if m is not layer], ctx) if group else []
    if fused:
        return Remedy(Safety.GUESS, f"the fused set's largest: amax {max(fused):.4g}")
    return Remedy(Safety.GUESS, "no plausible peer: min-positive or floor, on request")


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return float(np.float32(value))
