"""The least-squares scales of ``mx_to_nv`` in Numba, for casts with many blocks outside the window."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant import threads
from quant.codes import E2M1, E4M3

_GRAIN = 1 << 14  # blocks per task


def least_squares(
    block: NDArray[np.uint8], e: NDArray[np.int16], tried: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
    """See ``mx_to_nv.least_squares``: the same candidates in the same order, summed in its order."""
    scale = np.empty(len(block), np.uint8)
    out = np.empty_like(block)
    error = np.empty(len(block), np.float64)
    steps = E4M3.values[: tried + 1].astype(np.float64)
    values = E2M1.values[:8].astype(np.float64)

    def part(first: int, last: int) -> None:
        _least_squares(block, e, steps, values, first, last, scale, out, error)

    threads.run(part, len(block), _GRAIN)
    return scale, out, error


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _nearest(ratio):  # type: ignore[no-untyped-def]
    """Magnitude code of the nearest E2M1 value, ties to even."""
    n = (ratio > 0.25) + (ratio >= 0.75) + (ratio > 1.25) + (ratio >= 1.75)
    return n + (ratio > 2.5) + (ratio >= 3.5) + (ratio > 5.0)


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _least_squares(block, e, steps, values, first, last, scale, out, error):  # type: ignore[no-untyped-def]
    w = np.empty(16, np.float64)
    for b in range(first, last):
        unit = 2.0 ** float(e[b])
        for j in range(8):
            w[2 * j], w[2 * j + 1] = values[block[b, j] & 7] * unit, values[(block[b, j] >> 4) & 7] * unit
        best, winner = np.inf, 1
        for code in range(1, steps.size):
            loss = 0.0
            for j in range(16):
                d = w[j] - values[_nearest(w[j] / steps[code])] * steps[code]
                loss += d * d
            if loss < best:
                best, winner = loss, code
        scale[b], error[b] = winner, best
        for j in range(8):
            low, high = _nearest(w[2 * j] / steps[winner]), _nearest(w[2 * j + 1] / steps[winner])
            out[b, j] = np.uint8((block[b, j] & 0x88) | low | (high << 4))
