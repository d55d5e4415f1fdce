"""How far a Hessian-weighted sweep must go.

With H symmetrised (dwᵀ H dw does not see the rest), dwᵀ H dw ≥ λ · |dw|² for its least eigenvalue λ.
|dw|² itself is bounded from below: going up by the squares of the elements that round to zero, whose number only
grows; going down by the loss of the clipped amax.  ``floor`` takes off λ what float32 rounding of the 272 products
may hide (33 roundings of 2^-24 each, doubled, times the largest row sum of |H|), so the bound holds for the
rounded loss too.  Where nothing positive is left, all 126 candidates are tried.  A block of zeros
loses nothing under any scale and is done at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MARGIN = 66 * 2.0**-24
LEAST = np.float32(1e-30)
"""Below this, underflow could outweigh the margin."""


def floor(hessian_CBB: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [C]: f with rounded loss ≥ f · |dw|² for each K block's matrix; 0 where there is no such bound."""
    wide = hessian_CBB.astype(np.float64)
    least = np.linalg.eigvalsh((wide + wide.transpose(0, 2, 1)) / 2)[:, 0]
    size = np.maximum(np.abs(wide).sum(1).max(-1), np.abs(wide).sum(2).max(-1))
    bound = (least - _MARGIN * size) * (1 - 1e-5)
    return np.where(bound > LEAST, bound, 0).astype(np.float32)
