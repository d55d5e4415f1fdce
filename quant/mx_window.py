"""One piece of an MXFP4 tensor under the global scale 2^m: which blocks are exact, and the rounding of the others.

An MXFP4 block of 32 is worth 2^k per code step, k = b - 127.  Each of its halves is an NVFP4 block with scale
2^(k - m), and E4M3 has every power of two from 2^LOW to 2^HIGH: a block within that window keeps its codes.  Outside,
halving all codes of a block (possible when 0.5, 1.5, … do not occur) raises its k and doubling them (possible when
none is above 3) lowers it; what is left is rounded to the E4M3 scale of least squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quant import mx
from quant.cast import unpack_nibbles
from quant.codes import E2M1, E4M3

LOW, HIGH = -9, 8
"""E4M3 has 2^e exactly for LOW ≤ e ≤ HIGH."""
MOST = 3
"""No block can be halved or doubled more often: 4 / 0.5 is three octaves."""
NEUTRAL = 0x38
"""Scale 1.0, for a zero block whose own exponent has no E4M3 code."""
_MAGNITUDES = np.uint64(0x7777777777777777)
_TRIED = 12  # outside the window |w| ≤ 3 · 2^-9; from a scale of 4 · |w| up everything rounds to zero


@dataclass(frozen=True, eq=False)
class Moved:
    """Rows after the cast: ``packed`` uint8 [rows, K / 2], ``scales`` uint8 and ``error`` float64 [rows, K / 16]."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    error: NDArray[np.float64]


def new_scales(scales: NDArray[np.uint8], m: int) -> NDArray[np.uint8]:
    """E4M3 codes [..., 2 * n] of the halves of blocks with E8M0 codes [..., n], as long as they keep their codes.

    A block outside the window gets 1.0: right when all its codes are zero.
    """
    codes = np.frombuffer(scales.tobytes().translate(_codes(m)), np.uint8)
    doubled = codes.astype(np.uint16)
    doubled *= np.uint16(0x0101)
    return doubled.view(np.uint8).reshape(*scales.shape[:-1], 2 * scales.shape[-1])


@cache
def _codes(m: int) -> bytes:
    """For each E8M0 code an E4M3 code."""
    e = np.arange(256) - mx.BIAS - m
    codes = np.where((e >= LOW) & (e <= HIGH), _power_codes()[np.clip(e - LOW, 0, HIGH - LOW)], NEUTRAL)
    return codes.astype(np.uint8).tobytes()


class Blocks:
    """Rows cut into blocks of 16, flat: ``k`` [N], ``live`` [N], ``block`` [N, 8] bytes."""

    def __init__(self, packed: NDArray[np.uint8], scales: NDArray[np.uint8]) -> None:
        """``packed``: uint8 [rows, K / 2]; ``scales``: uint8 [rows, K / 32], none of them 255."""
        self.shape = scales.shape
        self.block = np.ascontiguousarray(packed).reshape(-1, 8)
        self.k = np.repeat(scales.reshape(-1).astype(np.int16) - np.int16(mx.BIAS), 2)
        self.live = (self.block.view(np.uint64).reshape(-1) & _MAGNITUDES) != 0

    def range(self) -> tuple[int, int] | None:
        """Smallest and largest k of a live block; None when all are zero."""
        k = self.k[self.live]
        return (int(k.min()), int(k.max())) if k.size else None

    def energy(self) -> float:
        """Sum of the squared weights."""
        return float(np.ldexp(_squares()[self.block].sum(1, dtype=np.float64), 2 * self.k.astype(np.int32)).sum())

    def amax(self) -> float:
        """Largest magnitude."""
        top = _largest()[self.block].max(1, initial=0).astype(np.float64)
        return float(np.ldexp(top, self.k.astype(np.int32)).max(initial=0))

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

    def cast(self, m: int) -> Moved:
        """The rows under the global scale 2^m: codes copied, moved by octaves, or rounded where neither is exact."""
        need, can = self.shifts(m)
        block, error = self.block, np.zeros(need.size, np.float64)
        e = self.k.astype(np.int64) - m + np.where(can, need, 0)
        inside = (e >= LOW) & (e <= HIGH)
        scales = np.where(inside, _power_codes()[np.clip(e - LOW, 0, HIGH - LOW)], NEUTRAL).astype(np.uint8)
        moved = np.flatnonzero(can & (need != 0))
        outside = np.flatnonzero(~can)
        if moved.size or outside.size:
            block = self.block.copy()
            block[moved] = _moved()[need[moved] + MOST][np.arange(moved.size)[:, None], self.block[moved]]
        if outside.size:
            from quant import cpu_cast  # Numba: imported where it is first used

            made = cpu_cast.least_squares(block[outside], self.k[outside] - np.int16(m), _TRIED)
            scales[outside], block[outside], error[outside] = made[0], made[1], np.ldexp(made[2], 2 * m)
        rows, width = self.shape
        return Moved(block.reshape(rows, -1), scales.reshape(rows, 2 * width), error.reshape(rows, 2 * width))


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
            while times < MOST and all(v * factor ** (times + 1) in values for v in present):
                times += 1
            out[row, seen] = times
    return out[0], out[1]


@cache
def _moved() -> NDArray[np.uint8]:
    """uint8 [7, 256]: a packed byte after its exponent rose by -3 … 3 octaves, its codes shrinking to match."""
    values = E2M1.values[:8].tolist()
    table = np.zeros((2 * MOST + 1, 16), np.uint8)
    for shift in range(-MOST, MOST + 1):
        for code in range(16):
            value = values[code & 7] * 2.0**-shift
            table[shift + MOST, code] = (code & 8) | (values.index(value) if value in values else 0)
    byte = np.arange(256)
    return table[:, byte & 15] | (table[:, byte >> 4] << np.uint8(4))


@cache
def _squares() -> NDArray[np.float32]:
    """For a packed byte the sum of its two squared values."""
    values = E2M1.values[:16].astype(np.float32) ** 2
    byte = np.arange(256)
    return np.asarray(values[byte & 15] + values[byte >> 4], np.float32)


@cache
def _largest() -> NDArray[np.float32]:
    """For a packed byte the larger of its two magnitudes."""
    values = np.abs(E2M1.values[:16].astype(np.float32))
    byte = np.arange(256)
    return np.asarray(np.maximum(values[byte & 15], values[byte >> 4]), np.float32)
