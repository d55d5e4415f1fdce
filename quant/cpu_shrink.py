"""The range search of bfloat16 blocks in Numba, pinned to the definition in ``shrink`` by property tests."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant.floats import Word, round_to

_HALF, _ODD, _UPPER = np.uint32(0x7FFF), np.uint32(1), np.uint32(0xFFFF0000)
_PLACE = np.uint32(16)
# Adding and subtracting 1.5 · 2^23 · step rounds to a multiple of step, ties to even: E2M1 has steps 0.5, 1, 2.
_HALVES, _ONES, _TWOS = np.float32(1.5 * 2**22), np.float32(1.5 * 2**23), np.float32(1.5 * 2**24)


def searched(
    a_BN: NDArray[np.float32],
    top_B: NDArray[np.float32],
    factors: NDArray[np.float32],
    epsilon: np.float32,
    limit: np.float32,
    powers: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """See ``shrink``: the amax that is kept, float32 [B], and at which of the ranges any block gained, bool.

    ``a_BN``: magnitudes, bfloat16 values in float32 [B, 16]; ``top_B``: where each search begins; ``factors``: of every
    range; ``epsilon``: the step where it would be 0; ``limit``: the loss to begin with; ``powers``: the loss of an
    error by its bfloat16 word.
    """
    amax_B, gained = top_B.copy(), np.zeros(len(factors), np.bool_)
    some = round_to(top_B * factors[:, None], Word.BFLOAT16)
    step = round_to(some / np.float32(6), Word.BFLOAT16)
    _search(a_BN, some, np.where(step == 0, epsilon, step), limit, powers, amax_B, gained)
    return amax_B, gained


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _search(a, some, step, limit, powers, kept, gained):  # type: ignore[no-untyped-def]
    bits = np.empty(16, np.uint32)
    x, loss = bits.view(np.float32), np.empty(16, np.float32)
    total = np.empty(1, np.float32)
    total_bits = total.view(np.uint32)
    for b in range(a.shape[0]):
        best = limit
        for n in range(some.shape[0]):
            scale = step[n, b]
            for j in range(16):
                x[j] = a[b, j] / scale
            for j in range(16):
                bits[j] = (bits[j] + _HALF + ((bits[j] >> _PLACE) & _ODD)) & _UPPER
            for j in range(16):
                ratio = min(x[j], np.float32(6))
                magic = _HALVES if ratio < np.float32(2) else (_ONES if ratio < np.float32(4) else _TWOS)
                x[j] = ((ratio + magic) - magic) * scale
            for j in range(16):
                bits[j] = (bits[j] + _HALF + ((bits[j] >> _PLACE) & _ODD)) & _UPPER
            for j in range(16):
                x[j] = abs(x[j] - a[b, j])
            for j in range(16):
                loss[j] = powers[(bits[j] + _HALF + ((bits[j] >> _PLACE) & _ODD)) >> _PLACE]
            for width in (8, 4, 2, 1):
                for j in range(width):
                    loss[j] += loss[j + width]
            total[0] = loss[0]
            total_bits[0] = (total_bits[0] + _HALF + ((total_bits[0] >> _PLACE) & _ODD)) & _UPPER
            if total[0] < best:
                best = total[0]
                kept[b] = some[n, b]
                gained[n] = True
