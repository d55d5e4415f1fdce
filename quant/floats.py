"""Weights as they are stored: float32, float16 and bfloat16, widened to float32 without a loss.

numpy has no bfloat16.  A bfloat16 array is carried as ``uint16`` words (the upper half of the float32);
an array whose dtype is *named* bfloat16, as ml_dtypes makes it, is taken for the same thing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import NumericError

Floats = NDArray[Any]
"""float32, float16, or bfloat16 as ``uint16`` words."""


class Word(StrEnum):
    """Precision in which an exporter does a step of its arithmetic."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def words(x: Floats) -> tuple[Word, Floats]:
    """The precision of ``x`` and the array itself, bfloat16 as ``uint16`` words; nothing is copied.

    Raises NumericError on any other dtype, float64 among them: rounding it silently would hide a loss.
    """
    if x.dtype == np.float32:
        return Word.FLOAT32, x
    if x.dtype == np.float16:
        return Word.FLOAT16, x
    if x.dtype == np.uint16:
        return Word.BFLOAT16, x
    if x.dtype.name == "bfloat16":
        return Word.BFLOAT16, x.view(np.uint16)
    raise NumericError(f"weights must be float32, float16 or bfloat16 (uint16 words), not {x.dtype}")


LAYOUT = {
    Word.FLOAT32: (np.uint32(0x7FFFFFFF), np.uint32(0), np.float32(1), np.uint32(31)),
    Word.BFLOAT16: (np.uint32(0x7FFF), np.uint32(16), np.float32(1), np.uint32(15)),
    Word.FLOAT16: (np.uint32(0x7FFF), np.uint32(13), np.float32(2.0**112), np.uint32(15)),
}
"""Mask of the magnitude, shift to a float32 pattern, exact factor that mends the exponent, place of the sign."""


def flat_words(w: Floats) -> tuple[Word, NDArray[np.uint16] | NDArray[np.uint32]]:
    """The words of ``w`` in one row, uint16 or uint32; a view where ``w`` is contiguous."""
    word, raw = words(w)
    flat = np.ascontiguousarray(raw).reshape(-1)
    return word, flat.view(np.uint32) if word is Word.FLOAT32 else flat.view(np.uint16)


def widen(x: Floats) -> NDArray[np.float32]:
    """``x`` as float32, exactly; NaN and infinity stay what they are.  A float32 array comes back itself."""
    word, raw = words(x)
    if word is Word.FLOAT32:
        return raw
    if word is Word.FLOAT16:
        return raw.astype(np.float32)
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_to(x: NDArray[np.float32], word: Word) -> NDArray[np.float32]:
    """``x`` rounded to the nearest value of ``word``, ties to even, still as float32; NaN stays NaN.

    A magnitude that rounds past the largest finite value becomes infinity, as IEEE 754 says.
    """
    if word is Word.FLOAT32:
        return x
    if word is Word.FLOAT16:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    return widen(narrow_bf16(x))


def narrow_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """``x`` as bfloat16 words, nearest, ties to even; NaN becomes the quiet NaN 0x7FC0."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).reshape(x.shape)


def place(flat: int, shape: tuple[int, ...]) -> str:
    """Flat index ``flat`` of an array of ``shape``, written ``[i, j]`` for a message."""
    return "[" + ", ".join(str(int(i)) for i in np.unravel_index(flat, shape)) + "]" if shape else "[]"


def require_finite(x: NDArray[np.float32], what: str = "value") -> None:
    """Nothing; raises NumericError naming the count, the first position and the value of what is not finite."""
    bad = ~np.isfinite(x)
    if count := int(np.count_nonzero(bad)):
        first = int(np.argmax(bad))
        at, found = place(first, x.shape), float(x.reshape(-1)[first])
        raise NumericError(f"{count} of {x.size} {what}s are not finite, the first at {at}: {found}")


_CHUNK = 1 << 20


def largest(x: Floats, what: str = "weight") -> np.float32:
    """The largest magnitude of ``x`` (float32, float16 or bfloat16 words, any shape), exactly; 0 when it is empty.

    Raises NumericError naming position and value when an element is NaN or infinite.  Works on the bits, whose
    order is the order of magnitudes, in chunks: nothing of the size of ``x`` is made unless x is not contiguous.
    """
    word, raw = words(x)
    bits: NDArray[Any] = np.ascontiguousarray(raw).reshape(-1).view(np.uint32 if word is Word.FLOAT32 else np.uint16)
    magnitude = 0x7FFFFFFF if word is Word.FLOAT32 else 0x7FFF
    top = 0
    for start in range(0, bits.size, _CHUNK):
        top = max(top, int(np.max(bits[start : start + _CHUNK] & magnitude)))
    value = widen(np.asarray([top], bits.dtype).view(raw.dtype))[0]
    if not np.isfinite(value):
        _raise_not_finite(x, what)
    return np.float32(value)


def _raise_not_finite(x: Floats, what: str) -> None:
    flat = np.ascontiguousarray(words(x)[1]).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = widen(flat[start : start + _CHUNK])
        bad = ~np.isfinite(part)
        if bad.any():
            first = int(np.argmax(bad))
            at = place(start + first, x.shape)
            raise NumericError(f"a {what} is not finite, the first at {at}: {float(part[first])}")
