"""Between float32 and codes: encode (nearest even, saturating), decode, nibbles.

The only place where a float becomes a code by rounding.  Torch builds disagree on what an overflowing
float8 cast gives (NaN or 448), so no cast of a framework is used; the value table of the format decides.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.codes import FloatCode
from quant.errors import NumericError
from quant.floats import place, require_finite


class Encoded(NamedTuple):
    """What ``encode`` returns; all three have the shape of its input."""

    codes: NDArray[np.uint8]
    saturated: NDArray[np.bool_]
    """|x| was above the format's largest value and became it."""
    flushed: NDArray[np.bool_]
    """x was not 0 and became 0 (E8M0 has no 0: x was below its smallest value and became it)."""


@cache
def magnitudes(fmt: FloatCode) -> NDArray[np.float32]:
    """The finite values of the codes 0, 1, 2 … with the sign bit clear, float32 [n], ascending."""
    half = fmt.values[: 1 << (fmt.bits - int(fmt.signed))]
    table = half[np.isfinite(half)]
    table.setflags(write=False)
    return table


@cache
def _middles(fmt: FloatCode) -> NDArray[np.float64]:
    """Midpoints of neighbouring magnitudes, exact in float64 [n - 1]."""
    mag = magnitudes(fmt).astype(np.float64)
    return np.asarray((mag[:-1] + mag[1:]) / 2)


@cache
def thresholds(fmt: FloatCode) -> NDArray[np.float32]:
    """float32 [n - 1]: a magnitude above ``thresholds[i]`` gets a code above i.

    They are the midpoints of neighbouring values (exact in float32); those above an odd code sit one
    float32 step lower, so that a tie goes to the even code.
    """
    mid = _middles(fmt).astype(np.float32)
    mid[1::2] = np.nextafter(mid[1::2], np.float32(0))
    mid.setflags(write=False)
    return mid


def nearest(fmt: FloatCode, x: NDArray[np.float64], error: float) -> NDArray[np.uint8] | None:
    """The nearest codes of positive numbers (or 0) that are within a relative ``error`` of ``x``, saturating.

    uint8, shape of ``x`` (float64, finite).  None when one of them is so near to a midpoint that its code, or a tie,
    cannot be told.
    """
    middles = _middles(fmt)
    low, high = middles.searchsorted(x * (1 - error)), middles.searchsorted(x * (1 + error), "right")
    return low.astype(np.uint8) if (low == high).all() else None


def encode(fmt: FloatCode, x: NDArray[np.float32]) -> Encoded:
    """The nearest code of every element of ``x`` (float32, any shape), ties to the even code, saturating.

    Never gives a NaN or infinity code.  -0.0 keeps its sign.  An unsigned format (E8M0) refuses negative
    values and zero, which it cannot express.  Raises NumericError on NaN or infinity: the value was lost
    before it came here and no code would be an honest answer; also on any dtype but float32.
    """
    if x.dtype != np.float32:
        raise NumericError(f"encode takes float32, not {x.dtype}")
    require_finite(x)
    if not fmt.signed:
        _require_positive(fmt, x)
    mag = np.abs(x)
    codes = np.searchsorted(thresholds(fmt), mag).astype(np.uint8).reshape(x.shape)
    flushed = (mag != 0) & (codes == 0) if fmt.signed else mag < fmt.smallest
    if fmt.signed:
        codes |= np.signbit(x).astype(np.uint8) << np.uint8(fmt.bits - 1)
    return Encoded(codes, mag > fmt.max, flushed)


def _require_positive(fmt: FloatCode, x: NDArray[np.float32]) -> None:
    bad = x <= 0
    if bad.any():
        first = int(np.argmax(bad))
        raise NumericError(f"{fmt.name} has no code for {float(x.reshape(-1)[first])} at {place(first, x.shape)}")


def decode(fmt: FloatCode, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The value of every code, float32, shape of ``codes`` (uint8).  NaN and infinity codes give NaN, infinity.

    Raises NumericError when a code has more bits than the format.
    """
    if codes.dtype != np.uint8:
        raise NumericError(f"codes are uint8, not {codes.dtype}")
    if fmt.bits < 8 and codes.size and int(codes.max()) >> fmt.bits:
        first = int(np.argmax(codes >> np.uint8(fmt.bits) > 0))
        found = int(codes.reshape(-1)[first])
        raise NumericError(f"{found:#04x} at {place(first, codes.shape)} is no {fmt.name} code")
    return fmt.values.take(codes)  # half the time of an index


def is_nan(fmt: FloatCode, codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a code means NaN; shape of ``codes``."""
    return np.isnan(fmt.values)[codes]


def pack_nibbles(codes: NDArray[np.uint8], axis: int = -1) -> NDArray[np.uint8]:
    """Two 4-bit codes per byte along ``axis``, the even index in the low nibble; that axis is halved.

    Raises NumericError when the axis has an odd length or a code has more than four bits.
    """
    if codes.shape[axis] % 2:
        raise NumericError(f"cannot pack an odd number of codes: axis {axis} has {codes.shape[axis]}")
    if codes.size and int(codes.max()) > 15:
        first = int(np.argmax(codes > 15))
        found = int(codes.reshape(-1)[first])
        raise NumericError(f"{found:#04x} at {place(first, codes.shape)} has more than four bits")
    last = np.moveaxis(codes, axis, -1)
    packed = last[..., 0::2] | (last[..., 1::2] << np.uint8(4))
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis))


def unpack_nibbles(packed: NDArray[np.uint8], axis: int = -1) -> NDArray[np.uint8]:
    """The 4-bit codes of ``packed`` (uint8), low nibble first; ``axis`` is doubled."""
    last = np.moveaxis(packed, axis, -1)
    codes = np.empty((*last.shape[:-1], 2 * last.shape[-1]), np.uint8)
    codes[..., 0::2] = last & np.uint8(15)
    codes[..., 1::2] = last >> np.uint8(4)
    return np.ascontiguousarray(np.moveaxis(codes, -1, axis))
