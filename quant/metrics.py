"""Error between weights and what their codes mean: sums that add over chunks.

Weights and reconstruction are float32; the differences, products and sums are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.backend import Backend
from quant.errors import NumericError
from quant.floats import Floats, widen
from quant.quantised import Quantised


@dataclass(frozen=True)
class ErrorSums:
    """Everything the metrics need.  ``a + b`` is the sum over both parts; ``ErrorSums()`` is that over none."""

    count: int = 0
    squared: float = 0.0
    """Σ (w - v)², v the reconstruction of w"""
    source: float = 0.0
    """Σ w²"""
    result: float = 0.0
    """Σ v²"""
    product: float = 0.0
    """Σ w · v"""
    largest: float = 0.0
    """max |w - v|"""

    def __add__(self, other: ErrorSums) -> ErrorSums:
        """Sums add, the largest error is the larger one (NaN is kept); order matters in the last bits only."""
        return ErrorSums(
            self.count + other.count,
            self.squared + other.squared,
            self.source + other.source,
            self.result + other.result,
            self.product + other.product,
            other.largest if other.largest > self.largest or math.isnan(other.largest) else self.largest,
        )

    @property
    def mse(self) -> float:
        """Mean squared error, in squared units of the weight; 0 for no elements."""
        return self.squared / self.count if self.count else 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise in dB: 10 log10(Σw² / Σ(w-v)²); inf where the error is 0.

        -inf where the ratio is 0: for Σw² = 0, and for an infinite error.  NaN where a sum is.
        """
        if self.squared == 0:
            return math.inf
        ratio = self.source / self.squared
        return 10 * math.log10(ratio) if ratio else -math.inf

    @property
    def relative(self) -> float:
        """Σ(w-v)² / Σw²; 0 where the error is 0, inf where only the source is."""
        if self.squared == 0:
            return 0.0
        return self.squared / self.source if self.source else math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between w and v; 1 where the error is 0, 0 where only one of them is 0."""
        if self.squared == 0:
            return 1.0
        if self.source == 0 or self.result == 0:
            return 0.0
        return self.product / math.sqrt(self.source) / math.sqrt(self.result)


def compare(w: Floats, v: Floats) -> ErrorSums:
    """Errors of the reconstruction ``v`` of ``w``; any float dtype, same shape.

    NaN or infinity on either side shows as NaN or infinity in the sums.  Raises NumericError on different shapes.
    """
    if w.shape != v.shape:
        raise NumericError(f"cannot compare shapes {w.shape} and {v.shape}")
    total = ErrorSums()
    flat_w, flat_v = w.reshape(-1), v.reshape(-1)
    for start in range(0, flat_w.size, 1 << 18):
        total += _sums(widen(flat_w[start : start + (1 << 18)]), widen(flat_v[start : start + (1 << 18)]))
    return total


def _sums(w: NDArray[np.float32], v: NDArray[np.float32]) -> ErrorSums:
    a, b = w.astype(np.float64), v.astype(np.float64)
    with np.errstate(invalid="ignore"):
        d = a - b
    largest = float(np.max(np.abs(d), initial=0))
    return ErrorSums(w.size, float(d @ d), float(a @ a), float(b @ b), float(a @ b), largest)


def error(w: Floats, quantised: Quantised, backend: Backend = Backend.CPU) -> ErrorSums:
    """Errors of a quantised weight against its source ``w`` ([..., K], any float dtype), without dequantising it whole.

    Both backends sum in float64, in different orders: equal but for the last bits (relative 1e-12).
    """
    if backend is Backend.REFERENCE:
        return compare(w, quantised.weights())
    from quant import cpu_error  # Numba: imported where it is first used

    shape = (*quantised.stored.shape[:-1], quantised.stored.shape[-1] * (2 if quantised.scheme.packed else 1))
    if w.shape != shape:
        raise NumericError(f"cannot compare a source of shape {w.shape} with codes of shape {shape}")
    return cpu_error.error(w, quantised)
