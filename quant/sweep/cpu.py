"""The sweep in Numba: a few candidates per block, the same winner as the reference on every finite input.

Thirty-two blocks side by side, one per SIMD lane.  A block starts at k0, the smallest candidate that does not
clip (6 · scale ≥ amax), and three facts, each true of the float32 arithmetic itself, bound the search:

* Up, eight candidates are enough.  From code 8 on, code + 8 doubles the scale.  Where nothing is clipped, every
  value that the doubled scale can give the block is also a value of the single scale, and rounding takes the
  nearer one, ties alike; so no term, and no ordered sum of terms, gets smaller by doubling.
* Down, the largest element is clipped and loses (amax - 6 · scale)², which grows as the scale shrinks; once this
  term alone exceeds the best loss, so does every further sum.
* Going up a candidate must be strictly better, going down it may be equal, so a tie ends at the smallest.

Where scales come near the subnormals the first fact no longer holds, and all 126 are tried.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant import threads
from quant.floats import LAYOUT, Floats, flat_words
from quant.sweep import candidates

LANES = 32
_GRAIN = 1 << 15  # blocks per task: 1 MB of bf16, about three milliseconds

_F = np.float32
_ZERO, _TWO, _FOUR, _SIX, _INF = _F(0), _F(2), _F(4), _F(6), _F(np.inf)
# Adding and subtracting 1.5 · 2^23 · step rounds to a multiple of step, ties to even: E2M1 has steps 0.5, 1, 2.
_HALVES, _ONES, _TWOS = _F(1.5 * 2**22), _F(1.5 * 2**23), _F(1.5 * 2**24)


def best_codes(w: Floats, global_amax: NDArray[np.float32]) -> tuple[NDArray[np.uint8], int]:
    """Best codes, uint8 [E, n], and the candidates evaluated in all (idle lanes that run along are counted).

    ``w``: blocks of 16, [E, n, 16], contiguous, finite; ``global_amax``: float32 [E], one per expert.
    """
    word, flat = flat_words(w)
    experts, count = w.shape[:2]
    out = np.empty(experts * count, np.uint8)
    work = 0
    for e in range(experts):
        scale = candidates.scales(global_amax[e])
        pruned = candidates.prunable(global_amax[e])

        def part(
            first: int, last: int, base: int = e * count, scale: NDArray[np.float32] = scale, pruned: bool = pruned
        ) -> int:
            return int(_sweep(flat, *LAYOUT[word][:3], scale, pruned, base + first, base + last, out))

        work += sum(threads.run(part, count, _GRAIN))
    return out.reshape(experts, count), work


@nb.njit(nogil=True, cache=True, error_model="numpy")
def load(raw, mask, shift, factor, first, count, stride, a_bits, a):  # type: ignore[no-untyped-def]
    """Fill ``a`` float32 [16, LANES] (``a_bits`` is its memory as uint32) with the magnitudes of ``count`` blocks."""
    if count < LANES:
        a_bits[:] = np.uint32(0)
    for lane in range(count):
        start = first + lane * stride
        for j in range(16):
            a_bits[j, lane] = (np.uint32(raw[start + j]) & mask) << shift
    if factor != np.float32(1):
        for j in range(16):
            for lane in range(LANES):
                a[j, lane] *= factor


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _square(a, scale):  # type: ignore[no-untyped-def]
    ratio = min(a / scale, _SIX)
    magic = _HALVES if ratio < _TWO else (_ONES if ratio < _FOUR else _TWOS)
    err = a - ((ratio + magic) - magic) * scale
    return err * err


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _losses(a, scale, loss):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        loss[lane] = _ZERO
    for j in range(8):
        for lane in range(LANES):
            low, high = _square(a[j, lane], scale[lane]), _square(a[j + 8, lane], scale[lane])
            loss[lane] += low + high


@nb.njit(nogil=True, cache=True, error_model="numpy")
def start_lanes(a, top, pruned, amax, low, high):  # type: ignore[no-untyped-def]
    """Set amax and the candidates ``low`` (k0) and ``high`` between which each lane goes up; returns the longest."""
    for lane in range(LANES):
        amax[lane] = a[0, lane]
    for j in range(1, 16):
        for lane in range(LANES):
            amax[lane] = max(amax[lane], a[j, lane])
    longest = 0
    for lane in range(LANES):
        k, end = 0, 125
        while pruned and k < end:
            middle = (k + end) >> 1
            if top[middle] >= amax[lane]:
                end = middle
            else:
                k = middle + 1
        low[lane] = k
        high[lane] = min(125, max(k, 7) + 7) if pruned else 125
        longest = max(longest, high[lane] - k)
    return longest


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _sweep(raw, mask, shift, factor, scale, pruned, first, last, out):  # type: ignore[no-untyped-def]
    a_bits = np.zeros((16, LANES), np.uint32)
    a = a_bits.view(np.float32)
    amax, step = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    loss, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    low, high, winner = np.empty(LANES, np.int32), np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    top = _SIX * scale
    work = 0
    for group in range(first, last, LANES):
        count = min(LANES, last - group)
        load(raw, mask, shift, factor, group * 16, count, 16, a_bits, a)
        longest = start_lanes(a, top, pruned, amax, low, high)
        best[:] = _INF
        winner[:] = 0
        for up in range(longest + 1):
            for lane in range(LANES):
                step[lane] = scale[min(low[lane] + up, high[lane])]
            _losses(a, step, loss)
            for lane in range(LANES):
                better = loss[lane] < best[lane]
                winner[lane] = min(low[lane] + up, high[lane]) if better else winner[lane]
                best[lane] = loss[lane] if better else best[lane]
        work += (longest + 1 + _down(a, scale, top, amax, low, step, loss, best, winner)) * count
        for lane in range(count):
            out[group + lane] = winner[lane] + 1
    return work


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _down(a, scale, top, amax, low, step, loss, best, winner):  # type: ignore[no-untyped-def]
    down = 0
    while True:
        going = 0
        for lane in range(LANES):
            k = max(low[lane] - down - 1, 0)
            clipped = amax[lane] - top[k]
            going += 1 if low[lane] > down and clipped * clipped <= best[lane] else 0
            step[lane] = scale[k]
        if going == 0:
            return down
        _losses(a, step, loss)
        down += 1
        for lane in range(LANES):
            better = loss[lane] <= best[lane]
            winner[lane] = max(low[lane] - down, 0) if better else winner[lane]
            best[lane] = loss[lane] if better else best[lane]
