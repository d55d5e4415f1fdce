"""MXFP4 to NVFP4 in closed form: new scales, untouched codes.

An MXFP4 block of 32 is worth 2^k per code step, k = b - 127.  Under a global scale 2^m, each of its halves is an
NVFP4 block with scale 2^(k - m), and E4M3 has every power of two from 2^-9 to 2^8.  With m = k_max - 8 (k_max over
blocks that have a non-zero code) all blocks within 17 octaves of the largest are exact and keep their codes.

Range beyond that, still exact: halving all codes of a block (possible when 0.5, 1.5, … do not occur) raises its k,
doubling them (possible when none is above 3) lowers it, which may let m itself sink.  What is left is rounded to
the E4M3 scale of least squared error, among them the exporter's own choice; and when requantising the whole set
from its amax loses less in sum, that is done instead.  So the result is never worse than either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quant import mx, nvfp4
from quant.cast import unpack_nibbles
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.quantised import Quantised
from quant.scheme import MXFP4, NVFP4

LOW, HIGH = -9, 8
"""E4M3 has 2^e exactly for LOW ≤ e ≤ HIGH."""
_MAGNITUDES = np.uint64(0x7777777777777777)
_NEUTRAL = 0x38  # scale 1.0, for a zero block whose own exponent has no E4M3 code
_MOST = 3  # no block can be halved or doubled more often: 4 / 0.5 is three octaves
_TRIED = 12  # outside the window |w| ≤ 3 · 2^-9; from a scale of 4 · |w| up everything rounds to zero


class Way(StrEnum):
    """How a set was cast (of several experts: REQUANTISED if any of them was)."""

    CLOSED_FORM = "closed form"
    REQUANTISED = "requantised"


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
    """A fused set (q, k, v; gate, up; all experts) under one common global scale; results in order."""
    for source in sources:
        _check(source)
    parts = [_Part(source) for source in sources]
    m = _choose(parts)
    results = [part.closed_form(m) for part in parts]
    if all(result.exact.all() for result in results):
        return results
    weights = [_weights(part) for part in parts]
    amax = max(float(np.abs(w).max(initial=0)) for w in weights)
    best = results
    if np.isfinite(amax):  # 4 · 2^126 is beyond float32: no way but the closed form
        for method in (nvfp4.Method.DYNAMIC, nvfp4.Method.SWEEP):
            plain = [_requantise(w, amax, m, method) for w in weights]
            best = plain if _total(plain) < _total(best) else best
    return best


def _total(results: list[Cast]) -> float:
    return float(sum(result.error.sum() for result in results))


def _global(one: Cast) -> NDArray[np.float32]:
    scale = one.quantised.global_scale
    return np.asarray(1 if scale is None else scale, np.float32)


def _check(source: Source) -> None:
    p, s = source.packed, source.scales
    if p.dtype != np.uint8 or s.dtype != np.uint8 or p.ndim < 1 or p.shape[:-1] != s.shape[:-1]:
        raise NumericError(f"{source.name}: {p.dtype} {p.shape} and scales {s.dtype} {s.shape} are no MXFP4 tensor")
    if p.shape[-1] != 16 * s.shape[-1]:
        raise NumericError(f"{source.name}: {p.shape[-1]} bytes a row do not fit {s.shape[-1]} scales of 32 codes")
    try:
        mx.require_no_nan(s)
    except NumericError as error:
        raise NumericError(f"{source.name}: {error}") from None


class _Part:
    """A source cut into blocks of 16, flat: ``k`` [N], ``live`` [N], ``block`` [N, 8] bytes."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.block = np.ascontiguousarray(source.packed).reshape(-1, 8)
        self.k = np.repeat(source.scales.reshape(-1).astype(np.int16) - np.int16(mx.BIAS), 2)
        self.live = (self.block.view(np.uint64).reshape(-1) & _MAGNITUDES) != 0

    def slack(self, at: NDArray[np.intp]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """How often the codes of the blocks ``at`` can be halved and doubled without a loss."""
        magnitudes = unpack_nibbles(self.block[at]) & np.uint8(7)
        seen = np.bitwise_or.reduce(np.uint8(1) << magnitudes, axis=1)
        return _slack()[0][seen], _slack()[1][seen]

    def shifts(self, m: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """Octaves by which each block's exponent must move into the window of ``m``, and whether it can."""
        e = self.k - np.int16(m)
        need = np.where(self.live, np.clip(e, LOW, HIGH) - e, 0).astype(np.int16)
        can = np.ones(need.size, np.bool_)
        at = np.flatnonzero(need)
        if at.size:
            halve, double = self.slack(at)
            can[at] = (need[at] <= halve) & (-need[at] <= double)
        return need, can

    def closed_form(self, m: int) -> Cast:
        """The part under the global scale 2^m: codes copied, moved by octaves, or rounded where neither is exact."""
        need, can = self.shifts(m)
        block, error = self.block, np.zeros(need.size, np.float64)
        e = self.k.astype(np.int64) - m + np.where(can, need, 0)
        inside = (e >= LOW) & (e <= HIGH)
        scales = np.where(inside, _power_codes()[np.clip(e - LOW, 0, HIGH - LOW)], _NEUTRAL).astype(np.uint8)
        moved = np.flatnonzero(can & (need != 0))
        outside = np.flatnonzero(~can)
        if moved.size or outside.size:
            block = self.block.copy()
            block[moved] = _moved()[need[moved] + _MOST][np.arange(moved.size)[:, None], self.block[moved]]
        if outside.size:
            from quant import cpu_cast  # Numba: imported where it is first used

            made = cpu_cast.least_squares(block[outside], self.k[outside] - np.int16(m), _TRIED)
            scales[outside], block[outside], error[outside] = made[0], made[1], np.ldexp(made[2], 2 * m)
        stored, shape = block.reshape(self.source.packed.shape), (*self.source.scales.shape[:-1], -1)
        quantised = Quantised(NVFP4, stored, scales.reshape(shape), np.asarray(np.ldexp(np.float32(1), m), np.float32))
        exact = (error == 0).reshape(shape)
        return Cast(quantised, Way.CLOSED_FORM, np.asarray(m, np.int64), exact, error.reshape(shape))


def _choose(parts: list[_Part]) -> int:
    """m: k_max - 8 where that makes all blocks exact, else lower by what doubling the top blocks' codes allows."""
    tops = [int(part.k[part.live].max()) for part in parts if part.live.any()]
    if not tops:
        return 0
    k_max = max(tops)
    if all(part.shifts(k_max - HIGH)[1].all() for part in parts):
        return k_max - HIGH
    least = k_max - _MOST
    for part in parts:
        at = np.flatnonzero(part.live & (part.k > least))
        if at.size:
            least = max(least, int((part.k[at] - part.slack(at)[1]).max()))
    return least - HIGH


def least_squares(
    block: NDArray[np.uint8], e: NDArray[np.int16], tried: int = _TRIED
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
    """Scale codes [N], packed codes [N, 8] and squared errors [N] of blocks too small for the window (e < LOW).

    ``block``: uint8 [N, 8]; ``e``: exponent of each, relative to the global scale's, which is the unit of the errors
    too.  The scale codes 1 … ``tried`` are compared in float64, where every product is exact; ties end at the smallest.
    Signs are kept, those of flushed codes too.  The definition: ``cpu_cast`` is the same in Numba.
    """
    codes = unpack_nibbles(block)
    w = np.ldexp(np.abs(E2M1.values.astype(np.float64))[codes], e.astype(np.int32)[:, None])
    best = np.full(len(block), np.inf)
    scale, magnitude = np.ones(len(block), np.uint8), np.zeros(codes.shape, np.uint8)
    values = E2M1.values[:8].astype(np.float64)
    middle = (values[:-1] + values[1:]) / 2
    for code in range(1, tried + 1):
        step = float(E4M3.values[code])
        ratio = w / step
        new = np.searchsorted(middle, ratio).astype(np.uint8)
        new += np.isin(ratio, middle[1::2]).astype(np.uint8)  # a tie above an odd code goes up, to the even one
        d = w - values[new] * step
        loss = np.zeros(len(block))
        for j in range(16):
            loss += d[:, j] * d[:, j]
        better = loss < best
        best[better], scale[better], magnitude[better] = loss[better], code, new[better]
    new = magnitude | (codes & np.uint8(8))
    return scale, new[:, 0::2] | (new[:, 1::2] << np.uint8(4)), best


def _requantise(w: NDArray[np.float32], amax: float, m: int, method: nvfp4.Method) -> Cast:
    """A dequantised part quantised anew under the set's common amax, as plain requantisation does."""
    new = nvfp4.quantise(w, amax, method=method)
    err = (w.astype(np.float64) - new.weights()).reshape(-1, 16)
    error = (err * err).sum(1).reshape(new.scales.shape)
    return Cast(new, Way.REQUANTISED, np.asarray(m, np.int64), error == 0, error)


def _weights(part: _Part) -> NDArray[np.float32]:
    return MXFP4.dequantise(unpack_nibbles(part.source.packed), part.source.scales)


@cache
def _power_codes() -> NDArray[np.uint8]:
    """E4M3 codes of 2^LOW … 2^HIGH."""
    powers = 2.0 ** np.arange(LOW, HIGH + 1)
    return np.searchsorted(E4M3.values[:127], powers).astype(np.uint8)


@cache
def _slack() -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """For each set of magnitude codes (a bit per code): how often all of them can be halved, and doubled."""
    values = E2M1.values[:8].tolist()
    out = np.zeros((2, 256), np.int16)
    for seen in range(256):
        present = [v for i, v in enumerate(values) if seen >> i & 1 and v]
        for row, factor in enumerate((0.5, 2.0)):
            times = 0
            while times < _MOST and all(v * factor ** (times + 1) in values for v in present):
                times += 1
            out[row, seen] = times
    return out[0], out[1]


@cache
def _moved() -> NDArray[np.uint8]:
    """uint8 [7, 256]: a packed byte after its exponent rose by -3 … 3 octaves, its codes shrinking to match."""
    values = E2M1.values[:8].tolist()
    table = np.zeros((2 * _MOST + 1, 16), np.uint8)
    for shift in range(-_MOST, _MOST + 1):
        for code in range(16):
            value = values[code & 7] * 2.0**-shift
            table[shift + _MOST, code] = (code & 8) | (values.index(value) if value in values else 0)
    byte = np.arange(256)
    return table[:, byte & 15] | (table[:, byte >> 4] << np.uint8(4))
