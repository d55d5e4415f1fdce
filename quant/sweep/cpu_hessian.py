"""The Hessian-weighted sweep in Numba: lanes are rows, which share the matrix of their K block.

Each lane walks on its own: up from the smallest candidate that does not clip, then down from there, until ``bounds``
says that no further candidate can win; where it proves nothing, from the first candidate to the last.  So no lane
tries more than 126, and a group of lanes as many as its longest walk.  Of equal losses the smaller scale wins whichever
came first.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant import threads
from quant.floats import LAYOUT, Floats, flat_words
from quant.sweep import candidates
from quant.sweep.bounds import LARGEST, LEAST, floor
from quant.sweep.cpu import LANES, load, start_lanes

_F = np.float32
_ZERO, _ONE, _TWO, _FOUR, _SIX, _INF = _F(0), _F(1), _F(2), _F(4), _F(6), _F(np.inf)
_HALVES, _ONES, _TWOS = _F(1.5 * 2**22), _F(1.5 * 2**23), _F(1.5 * 2**24)
_QUARTER = _F(0.25)
_LEAST, _LARGEST = LEAST, LARGEST


def best_codes(
    w: Floats, global_amax: NDArray[np.float32], hessian_CBB: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], int]:
    """Best codes, uint8 [E, R, C], and the candidates evaluated in all (lanes that wait for the longest are counted).

    ``w``: [E, R, C, 16], contiguous, finite; ``global_amax``: float32 [E]; ``hessian_CBB``: float32 [C, 16, 16].
    """
    word, flat = flat_words(w)
    experts, rows, columns = w.shape[:3]
    out = np.empty((experts, rows, columns), np.uint8)
    bound = floor(hessian_CBB)
    work = 0
    for e in range(experts):
        scale = candidates.scales(global_amax[e])
        safe = candidates.prunable(global_amax[e])

        def part(first: int, last: int, e: int = e, scale: NDArray[np.float32] = scale, safe: bool = safe) -> int:
            place = (e * rows, rows, columns)
            return int(_sweep(flat, LAYOUT[word], place, scale, safe, hessian_CBB, bound, first, last, out[e]))

        work += sum(threads.run(part, columns, 8))
    return out, work


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _losses(a, negative, hessian, scale, err, row, loss, kept):  # type: ignore[no-untyped-def]
    """Set ``loss`` to dwᵀ H dw of each lane (NaN counts as infinite), ``kept`` to the squares of flushed elements."""
    kept[:] = _ZERO
    loss[:] = _ZERO
    for j in range(16):
        for lane in range(LANES):
            ratio = min(a[j, lane] / scale[lane], _SIX)
            magic = _HALVES if ratio < _TWO else (_ONES if ratio < _FOUR else _TWOS)
            d = a[j, lane] - ((ratio + magic) - magic) * scale[lane]
            err[j, lane] = -d if negative[j, lane] else d
            kept[lane] += a[j, lane] * a[j, lane] if ratio <= _QUARTER else _ZERO
    for i in range(16):
        for lane in range(LANES):
            row[lane] = hessian[i, 0] * err[0, lane]
        for j in range(1, 16):
            h = hessian[i, j]
            for lane in range(LANES):
                row[lane] += h * err[j, lane]
        for lane in range(LANES):
            loss[lane] += row[lane] * err[i, lane]
    for lane in range(LANES):
        loss[lane] = loss[lane] if loss[lane] == loss[lane] else _INF


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _signs(raw, sign, first, count, stride, negative):  # type: ignore[no-untyped-def]
    for lane in range(count):
        for j in range(16):
            word = np.uint32(raw[first + lane * stride + j])
            # -0.0 >= 0: the definition gives it the plus sign
            negative[j, lane] = (word >> sign) == np.uint32(1) and (word << (np.uint32(32) - sign)) != np.uint32(0)


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _sweep(  # type: ignore[no-untyped-def]
    raw, layout, place, scale, safe, hessian, bound, first, last, out
):
    a_bits = np.zeros((16, LANES), np.uint32)
    a, err = a_bits.view(np.float32), np.empty((16, LANES), np.float32)
    negative = np.zeros((16, LANES), np.bool_)
    amax, sure, row = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    low, high, winner = np.empty(LANES, np.int32), np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    top = _SIX * scale
    work = 0
    base, rows, columns = place
    mask, shift, factor, sign = layout
    for column in range(first, last):
        pruned = safe and bound[column] > _ZERO
        for group in range(0, rows, LANES):
            count = min(LANES, rows - group)
            start = ((base + group) * columns + column) * 16
            load(raw, mask, shift, factor, start, count, columns * 16, a_bits, a)
            _signs(raw, sign, start, count, columns * 16, negative)
            start_lanes(a, top, pruned, amax, low, high)
            for lane in range(LANES):
                proved = pruned and amax[lane] <= _LARGEST
                sure[lane] = bound[column] if proved else _ZERO
                low[lane] = low[lane] if proved else 0
            work += _walk((a, negative, hessian[column], err, row), scale, top, amax, sure, low, winner) * count
            for lane in range(count):
                out[group + lane, column] = winner[lane] + 1
    return work


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _beyond(sure, square, best):  # type: ignore[no-untyped-def]
    """Whether every loss from a candidate with this ``square`` onwards exceeds ``best``."""
    return square > _LEAST and sure * square > max(best, _LEAST)


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _walk(block, scale, top, amax, sure, low, winner):  # type: ignore[no-untyped-def]
    """Set ``winner``; returns the candidates that each lane tried.  A lane that is done goes on without effect."""
    a, negative, hessian, err, row = block
    step, best = np.empty(LANES, np.float32), np.full(LANES, _INF)
    loss, kept = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    now, rising = low.copy(), np.ones(LANES, np.bool_)
    winner[:] = 0
    tried, going = 0, 1
    while going:
        going = 0
        for lane in range(LANES):
            step[lane] = scale[now[lane]]
        _losses(a, negative, hessian, step, err, row, loss, kept)
        tried += 1
        for lane in range(LANES):
            k = now[lane]
            if loss[lane] < best[lane] or (loss[lane] == best[lane] and k < winner[lane]):
                winner[lane], best[lane] = k, loss[lane]
            if rising[lane]:
                rising[lane] = k < 125 and amax[lane] > _ZERO and not _beyond(sure[lane], kept[lane], best[lane])
                k = k if rising[lane] else low[lane]
            k = k + 1 if rising[lane] else k - 1
            now[lane] = max(k, 0)
            clipped = amax[lane] - top[now[lane]]
            going += rising[lane] or (k >= 0 and not _beyond(sure[lane], clipped * clipped, best[lane]))
    return tried
