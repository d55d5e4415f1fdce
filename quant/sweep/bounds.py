"""How far a Hessian-weighted sweep must go.

With H symmetrised (dwᵀ H dw does not see the rest), dwᵀ H dw ≥ λ · |dw|² for its least eigenvalue λ.
|dw|² itself is bounded from below by a ``square``: going up by the squares of the elements that round to zero, whose
number only grows; going down by that of the clipped amax.  ``floor`` takes off λ what float32 rounding of the 272
products may hide (33 roundings of 2^-24 each, doubled, times the largest row sum of |H|), so the bound holds for the
rounded loss too.

That is proved where nothing overflows and what underflows does not count, which three limits see to:

* Block amax ≤ ``LARGEST`` and largest row sum of |H| ≤ ``LARGEST_SUM``: no partial sum of the loss passes 2^124 and no
  ``square`` 2^44.  An infinite ``square`` says nothing under a small λ, and an infinite loss has no order.
* ``square`` and λ · ``square`` above ``LEAST``: underflow takes at most 2^-150 from a product, in all (256 amax + 16)
  2^-150 < 2e-37 from a loss and 2^-146 from a ``square``; the factor 1 - 1e-5 of ``floor`` covers that.
* All scales ≥ ``candidates.SAFE_SCALE``: they then rise with the candidate.

A block outside them, or without a positive bound, tries all 126 candidates.  A block of zeros loses nothing under any
scale and is done at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MARGIN = 66 * 2.0**-24
LEAST = np.float32(1e-30)
LARGEST = np.float32(2.0**20)
LARGEST_SUM = 2.0**80


def floor(hessian_CBB: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [C]: f with rounded loss ≥ f · |dw|² for each K block's matrix; 0 where no such bound is proved."""
    wide = hessian_CBB.astype(np.float64)
    least = np.linalg.eigvalsh((wide + wide.transpose(0, 2, 1)) / 2)[:, 0]
    size = np.maximum(np.abs(wide).sum(1).max(-1), np.abs(wide).sum(2).max(-1))
    bound = (least - _MARGIN * size) * (1 - 1e-5)
    return np.where((bound > LEAST) & (size <= LARGEST_SUM), bound, 0).astype(np.float32)
