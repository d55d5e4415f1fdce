"""NVFP4 as modelopt 0.44 and older wrote it, faults included: what their exports in the tests hold.

Those releases let the E4M3 cast overflow to NaN and underflow to 0, then divided by the broken scale: a block under a
NaN scale is all 0x77, one under a zero scale has codes ±7.  Everything else is as in ``nvfp4``.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quant import blocks
from quant.cast import pack_nibbles, thresholds
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Floats, largest, widen
from quant.nvfp4 import NORM, SMALLEST_SCALE, Method
from quant.quantised import Quantised
from quant.scheme import NVFP4

_NAN = 0x7F
_OVERFLOW = np.float32(464)  # the midpoint to the would-be 480; beyond it older casts give NaN
_SIX = np.float32(E2M1.max)


class Generation(StrEnum):
    """Which clamp the release had before the cast of the block scales."""

    UNCLAMPED = "0.43"
    """0.43 and older: none."""
    TOP = "0.44"
    """0.44: at 448, in the static path only."""
    BOTH = "0.45"
    """From 0.45 on: to [2^-9, 448]; the same as ``nvfp4.quantise`` on finite weights that are not all zero."""


def quantise(
    w: Floats,
    generation: Generation,
    method: Method = Method.DYNAMIC,
    global_amax: np.float32 | float | None = None,
) -> Quantised:
    """``w`` (any float dtype, [..., K]) as that release of modelopt exports it; ``method``: DYNAMIC or STATIC.

    An all-zero weight gives global scale 0, NaN scales and codes 7, as it did.  Raises NumericError on NaN or
    infinity in ``w``, on ragged K and on another method.
    """
    top = np.float32(largest(w) if global_amax is None else global_amax)
    blocks.require_whole(w.shape, 16)
    amax = blocks.amax(widen(w), (16,))
    ws2 = top / (_SIX * NORM)
    with np.errstate(all="ignore"):
        if method is Method.DYNAMIC:
            s = amax / (_SIX * ws2)
            s = np.where(s == 0, np.float32(1), s)
        elif method is Method.STATIC:
            s = amax / _SIX
            s = np.where(s == 0, np.float32(1), s) * NORM / (top / _SIX)
        else:
            raise NumericError(f"older releases are reproduced for the dynamic and static method, not {method}")
        scales = _cast(s, generation, method)
        ratio = widen(w) / blocks.spread(E4M3.values[scales] * ws2, w.shape, (16,))
        codes = np.searchsorted(thresholds(E2M1), np.abs(ratio)).astype(np.uint8).reshape(w.shape)  # NaN sorts last
        codes |= (ratio < 0).astype(np.uint8) << np.uint8(3)
    return Quantised(NVFP4, pack_nibbles(codes), scales, np.asarray(ws2, np.float32))


def _cast(s: NDArray[np.float32], generation: Generation, method: Method) -> NDArray[np.uint8]:
    """E4M3 codes of ``s`` with the release's clamp and the bare cast's NaN on overflow."""
    if generation is Generation.BOTH:
        s = np.clip(s, SMALLEST_SCALE, NORM)
    elif generation is Generation.TOP and method is Method.STATIC:
        s = np.minimum(s, NORM)
    codes = np.searchsorted(thresholds(E4M3), s).astype(np.uint8).reshape(s.shape)
    return np.where((s > _OVERFLOW) | np.isnan(s), np.uint8(_NAN), codes)
