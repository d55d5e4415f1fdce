"""A global scale that multiplies, as one that divides, and back: what that does to the weights.

modelopt stores g and means code · (scale · g); compressed-tensors stores d and means code · (scale / d).  Both products
are rounded to float32, so d = 1/g gives the same weights only where the roundings agree.  Tried for all 2^23
significands: for 18.4 % of all g (powers of two among them) every weight is the same under every scale; otherwise a
weight is off by at most two steps of float32, a relative 2.67 · 2^-24.  The nearest float32 to 1/g is as good as it
gets: a neighbour of it is exact where it is not for one significand alone (0x1.1118bp+0).  For 82.8 % of all g
the reciprocal of d is g again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.cast import decode
from quant.codes import E2M1, E4M3
from quant.errors import NumericError

_SCALES = 128  # E4M3 codes without their sign


def reciprocal(scale: np.float32) -> np.float32:
    """The float32 nearest to 1/``scale``, ties to even.

    NumericError for what has none that a loader can use: zero, negative numbers, NaN, infinity, and numbers so small
    that 1/x overflows or so large that it is not a normal number.
    """
    with np.errstate(all="ignore"):
        found = np.float32(1) / np.float32(scale)
    if not (scale > 0 and np.isfinite(scale) and np.isfinite(found) and found >= np.finfo(np.float32).tiny):
        raise NumericError(f"{scale} has no reciprocal that is a positive, normal float32 number")
    return found


def inverts(old: np.float32, new: np.float32) -> bool:
    """Whether the float32 nearest to 1/``new`` is ``old`` again, bit for bit."""
    with np.errstate(all="ignore"):
        return bool(np.float32(1) / np.float32(new) == np.float32(old))


@dataclass(frozen=True)
class Agreement:
    """How the weights under a multiplier and a divisor differ, for each E4M3 scale code without its sign [128].

    ``ulps``: the largest distance of a weight, in steps of float32; 0 where all are equal bit for bit.
    ``deviation``: the largest relative difference, float64.
    """

    ulps: NDArray[np.int64]
    deviation: NDArray[np.float64]

    def over(self, counts: NDArray[np.int64]) -> tuple[int, int, float]:
        """(exact blocks, largest ulps, largest deviation) of a tensor with so many blocks under each scale code."""
        there = counts > 0
        exact = int(counts[self.ulps == 0].sum())
        return exact, int(self.ulps[there].max(initial=0)), float(self.deviation[there].max(initial=0.0))


def agreement(multiplier: np.float32, divisor: np.float32) -> Agreement:
    """Compare code · (scale · ``multiplier``) with code · (scale / ``divisor``) for every scale and code, in float32.

    A NaN scale makes NaN of both and counts as equal, as does an overflow of both.
    """
    scales = decode(E4M3, np.arange(_SCALES, dtype=np.uint8))
    codes = decode(E2M1, np.arange(8, dtype=np.uint8))
    with np.errstate(all="ignore"):
        one = codes * (scales * np.float32(multiplier))[:, None]
        other = codes * (scales / np.float32(divisor))[:, None]
        apart = np.abs(one.astype(np.float64) - other) / np.where(one > 0, one, np.float32(1))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    ulps = np.abs(one.view(np.int32).astype(np.int64) - other.view(np.int32))
    return Agreement(np.where(same, 0, ulps).max(1), np.where(same, 0.0, apart).max(1))


def scale_counts(scales: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many of ``scales`` (E4M3 codes of any shape) are each code without its sign, int64 [128]."""
    return np.bincount(scales.ravel() & 0x7F, minlength=_SCALES).astype(np.int64)
