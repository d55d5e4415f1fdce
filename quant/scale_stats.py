"""What a tensor of E4M3 block scales looks like, from one pass over its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.backend import Backend
from quant.codes import E4M3
from quant.errors import NumericError

_TOP = 0x7E  # 448
_BAND = slice(0x7A, 0x7E)  # the four codes below it


def byte_counts(codes: NDArray[np.uint8], backend: Backend = Backend.CPU) -> NDArray[np.int64]:
    """How often each of the 256 bytes occurs in ``codes`` (uint8, any shape), int64 [256]; adds over chunks."""
    if codes.dtype != np.uint8:
        raise NumericError(f"codes are uint8, not {codes.dtype}")
    if backend is Backend.REFERENCE:
        return np.bincount(codes.reshape(-1), minlength=256).astype(np.int64)
    from quant import cpu_error  # Numba: imported where it is first used

    return cpu_error.byte_counts(codes)


@dataclass(frozen=True)
class ScaleStats:
    """Counts of kinds of E4M3 scale codes."""

    count: int
    nan: int
    """0x7F and 0xFF"""
    negative: int
    """sign bit set, NaN not among them"""
    zero: int
    """0x00 and 0x80"""
    subnormal: int
    """positive, below 2^-6"""
    top: int
    """0x7E, the largest value: saturated, or the block of the tensor's amax"""
    band: int
    """0x7A to 0x7D, the four codes below: sound tensors have far more of these than of 0x7E"""
    smallest: float
    """smallest positive value; NaN when there is none"""
    largest: float
    """largest positive value; NaN when there is none"""


def stats(counts: NDArray[np.int64]) -> ScaleStats:
    """The summary of byte ``counts`` (int64 [256])."""
    values = E4M3.values
    positive = np.flatnonzero(counts * (np.nan_to_num(values) > 0))
    return ScaleStats(
        count=int(counts.sum()),
        nan=int(counts[np.isnan(values)].sum()),
        negative=int(counts[0x80:0xFF].sum()),
        zero=int(counts[0] + counts[0x80]),
        subnormal=int(counts[1:8].sum()),
        top=int(counts[_TOP]),
        band=int(counts[_BAND].sum()),
        smallest=float(values[positive[0]]) if positive.size else float("nan"),
        largest=float(values[positive[-1]]) if positive.size else float("nan"),
    )
