"""The definition of the sweep, in numpy: all 126 candidates, one after the other.

Every operation is float32.  The order of adding is part of the definition, as ties depend on it: of the sixteen squared
errors number j and j + 8 first, then those eight sums from first to last.  So does torch's sum over sixteen on x86, and
with it the exporter's calibrator on a CPU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.cast import decode, encode
from quant.codes import E2M1
from quant.sweep import candidates


def best_codes(w_NB: NDArray[np.float32], scale_NK: NDArray[np.float32]) -> NDArray[np.uint8]:
    """E4M3 code of the best scale of each block, uint8 [N]; the smallest of equals wins.

    ``w_NB``: blocks, float32 [N, B], finite.  ``scale_NK``: the candidates' scales, float32 [N, 126] or [1, 126].
    An overflow to infinity is a loss like any other; if all are infinite, code 1 wins.
    """
    return _first_least(losses(w_NB, scale_NK))


def losses(w_NB: NDArray[np.float32], scale_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Σ over the block of (|w| - e2m1(|w| / scale) · scale)², float32 [N, 126], added in the order above."""
    a_NB = np.abs(w_NB)
    loss_NK = np.empty((len(w_NB), candidates.COUNT), np.float32)
    for k in range(candidates.COUNT):
        err_NB = _error(a_NB, scale_NK[:, k, None])
        with np.errstate(over="ignore", under="ignore"):
            loss_NK[:, k] = add_squares(err_NB * err_NB)
    return loss_NK


def add_squares(x_NB: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum over the last axis (even length) in the order above: halves first, then from first to last."""
    half = x_NB.shape[-1] // 2
    pair = x_NB[..., :half] + x_NB[..., half:]
    total = pair[..., 0]
    for j in range(1, half):
        total = total + pair[..., j]
    return total


def best_codes_hessian(
    w_NB: NDArray[np.float32], scale_NK: NDArray[np.float32], hessian_NBB: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """As ``best_codes`` for the loss dwᵀ H dw; ``hessian_NBB``: float32 [N, B, B], one matrix per block.

    For each i the sum over j of H_ij dw_j, from first to last, then the sum over i.  A NaN (infinity less infinity)
    counts as infinite.
    """
    loss_NK = np.empty((len(w_NB), candidates.COUNT), np.float32)
    sign_NB = np.where(w_NB >= 0, np.float32(1), np.float32(-1))
    a_NB = np.abs(w_NB)
    for k in range(candidates.COUNT):
        dw_NB = sign_NB * _error(a_NB, scale_NK[:, k, None])
        with np.errstate(all="ignore"):
            hdw_NB = np.stack([_sum_in_order(hessian_NBB[:, i], dw_NB) for i in range(w_NB.shape[1])], axis=1)
        loss_NK[:, k] = _sum_in_order(hdw_NB, dw_NB)
    loss_NK[np.isnan(loss_NK)] = np.inf
    return _first_least(loss_NK)


def _first_least(loss_NK: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.argmin(loss_NK, axis=1) + 1, np.uint8)  # candidate k is code k + 1


def _error(a_NB: NDArray[np.float32], scale_N1: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", under="ignore"):
        ratio_NB = np.minimum(a_NB / scale_N1, np.float32(E2M1.max))  # the quotient may overflow; 6 rounds to 6
        return a_NB - decode(E2M1, encode(E2M1, ratio_NB).codes) * scale_N1


def _sum_in_order(x_NB: NDArray[np.float32], y_NB: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        total_N = x_NB[:, 0] * y_NB[:, 0]
        for j in range(1, x_NB.shape[1]):
            total_N = total_N + x_NB[:, j] * y_NB[:, j]
    return total_N
