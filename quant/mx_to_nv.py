"""MXFP4 to NVFP4 in closed form: new scales, untouched codes.

Arrays in, arrays out.  ``mx_window`` has the arithmetic of one block and the range in which it is exact, ``mx_plan``
the choice of the global scale and of the way; whole checkpoints are cast through the same plan, read piece by piece.

The result is never worse than requantising the set from its amax, nor than the exporter's own rounding of what lies
outside the window: the closed form gives way where it would lose more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.errors import NumericError
from quant.mx_plan import Plan, Way, plan
from quant.mx_rows import chunks
from quant.mx_window import HIGH, LOW, Moved, least_squares
from quant.quantised import Quantised
from quant.scheme import NVFP4


@dataclass(frozen=True, eq=False)
class Cast:
    """One tensor after the cast; N is its number of NVFP4 blocks, in the shape [..., K / 16]."""

    quantised: Quantised
    way: Way
    m: NDArray[np.int64]
    """Exponent of the global scale, [] or [E]; for Way.REQUANTISED that of the closed form that lost."""
    exact: NDArray[np.bool_]
    """[..., K / 16]: the block means the same numbers as before."""
    error: NDArray[np.float64]
    """[..., K / 16]: sum of squared errors of the block."""


@dataclass(frozen=True, eq=False)
class Source:
    """An MXFP4 tensor: ``packed`` uint8 [..., K / 2], ``scales`` uint8 (E8M0) [..., K / 32]; ``name`` for messages."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    name: str = "tensor"


def cast(source: Source, per_expert: bool = False) -> Cast:
    """One tensor, or with ``per_expert`` each expert of [E, R, K] under its own global scale.

    Raises NumericError naming tensor and index on scale code 255, and on shapes that do not fit.
    """
    if not per_expert:
        return cast_set([source])[0]
    if source.packed.ndim != 3:
        raise NumericError(f"{source.name}: shape {source.packed.shape} has no experts")
    _check(source)
    each = [cast(Source(p, s, source.name)) for p, s in zip(source.packed, source.scales, strict=True)]
    stacked = Quantised(
        NVFP4,
        np.stack([one.quantised.stored for one in each]),
        np.stack([np.asarray(one.quantised.scales, np.uint8) for one in each]),
        np.stack([_global(one) for one in each]),
    )
    way = Way.CLOSED_FORM if all(one.way is Way.CLOSED_FORM for one in each) else Way.REQUANTISED
    m, exact = np.stack([one.m for one in each]), np.stack([one.exact for one in each])
    return Cast(stacked, way, m, exact, np.stack([one.error for one in each]))


def cast_set(sources: Sequence[Source]) -> list[Cast]:
    """A fused set (q, k, v; gate, up; all experts) under one common global scale; results in order.

    Raises NumericError naming tensor and index on scale code 255, and on shapes that do not fit.
    """
    for source in sources:
        _check(source)
    held = [_Held(source) for source in sources]
    chosen = plan(held)
    return [_carried_out(chosen, one) for one in held]


class _Held:
    """A source in memory, as rows."""

    def __init__(self, source: Source) -> None:
        self.name, self.shape = source.name, source.scales.shape
        self.blocks = self.shape[-1]
        self.rows = source.scales.size // self.blocks if self.blocks else 0
        self._packed = source.packed.reshape(self.rows, 16 * self.blocks)
        self._scales = source.scales.reshape(self.rows, self.blocks)

    def scales(self, first: int, last: int) -> NDArray[np.uint8]:
        return self._scales[first:last]

    def packed(self, first: int, last: int) -> NDArray[np.uint8]:
        return self._packed[first:last]

    def place(self, row: int, block: int) -> str:
        return str([int(i) for i in np.unravel_index(row * self.blocks + block, self.shape)])


def _carried_out(chosen: Plan, held: _Held) -> Cast:
    made = [_rows(chosen, held, first, last) for first, last in chunks(held)]
    shape = (*held.shape[:-1], 2 * held.blocks)
    stored = np.concatenate([one.packed for one in made] or [held.packed(0, 0)])
    scales = np.concatenate([one.scales for one in made] or [np.zeros(0, np.uint8)])
    error = np.concatenate([one.error for one in made] or [np.zeros(0)]).reshape(shape)
    wide = np.asarray(chosen.global_scale, np.float32)
    quantised = Quantised(NVFP4, stored.reshape(*held.shape[:-1], -1), scales.reshape(shape), wide)
    return Cast(quantised, chosen.way, np.asarray(chosen.m, np.int64), error == 0, error)


def _rows(chosen: Plan, held: _Held, first: int, last: int) -> Moved:
    packed, scales = held.packed(first, last), held.scales(first, last)
    if chosen.keeps(scales):
        new = chosen.new_scales(scales)
        return Moved(packed, new, np.zeros(new.shape))
    return chosen.cast(packed, scales)


def _global(one: Cast) -> NDArray[np.float32]:
    scale = one.quantised.global_scale
    return np.asarray(1 if scale is None else scale, np.float32)


def _check(source: Source) -> None:
    p, s = source.packed, source.scales
    if p.dtype != np.uint8 or s.dtype != np.uint8 or p.ndim < 1 or p.shape[:-1] != s.shape[:-1]:
        raise NumericError(f"{source.name}: {p.dtype} {p.shape} and scales {s.dtype} {s.shape} are no MXFP4 tensor")
    if p.shape[-1] != 16 * s.shape[-1]:
        raise NumericError(f"{source.name}: {p.shape[-1]} bytes a row do not fit {s.shape[-1]} scales of 32 codes")


__all__ = ["HIGH", "LOW", "Cast", "Source", "Way", "cast", "cast_set", "least_squares"]
