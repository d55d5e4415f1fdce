"""What every side of the sweep tries: the 126 positive finite E4M3 values, and the scales they stand for.

Candidate k is E4M3 code k + 1.  Its fraction is c = value / 448 and its scale (c · global_amax) / 6, each step
rounded to float32 in this order, as the exporter's calibrator does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.codes import E2M1, E4M3

COUNT = 126
VALUES: NDArray[np.float32] = E4M3.values[1 : COUNT + 1]
FRACTIONS: NDArray[np.float32] = VALUES / np.float32(E4M3.max)

SAFE_SCALE = np.float32(2.0**-100)
"""Pruning is proved for scales from here up: half a step is still a normal float32."""


def scales(global_amax: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a code step is worth under each candidate: float32 [..., 126] for ``global_amax`` of shape [...].

    A scale that underflows to zero becomes 1.0, as in the exporter (the block then rounds with unit 1).
    """
    with np.errstate(under="ignore"):
        product = FRACTIONS * np.asarray(global_amax, np.float32)[..., None]
        step = product / np.float32(E2M1.max)
    return np.where(step == 0, np.float32(1), step)


def prunable(global_amax: NDArray[np.float32]) -> bool:
    """Whether every candidate's scale, under each of the amax given, is large enough for the pruning to be proved."""
    with np.errstate(under="ignore"):
        least = FRACTIONS[0] * np.asarray(global_amax, np.float32) / np.float32(E2M1.max)
    return bool((least >= SAFE_SCALE).all())


def block_amax(codes: NDArray[np.uint8], global_amax: NDArray[np.float32]) -> NDArray[np.float32]:
    """The amax that the exporter stores for the winning ``codes`` (uint8, 1 … 126): global_amax · (value / 448)."""
    with np.errstate(under="ignore"):
        return np.asarray(global_amax, np.float32) * FRACTIONS[codes.astype(np.intp) - 1]
