"""Values drawn where decisions are made: on thresholds, lattice points, their float32 neighbours, at the extremes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from quant.floats import Word, narrow_bf16

LATTICE = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0]


def neighbours(x: np.ndarray) -> np.ndarray:
    """``x`` with its float32 neighbours on both sides, both signs."""
    x = np.asarray(x, np.float32)
    inf = np.float32(np.inf)
    near = np.concatenate([x, np.nextafter(x, inf), np.nextafter(x, -inf)])
    near = near[np.isfinite(near)]
    return np.concatenate([near, -near])


def finite_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of uniformly random bits: all magnitudes, subnormals too; NaN and infinity become zero."""
    x = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(0))


@st.composite
def blocks(draw: st.DrawFn, rows: int = 12, columns: int = 48) -> np.ndarray:
    """float32 [rows, columns] with K a multiple of 16, of one of the kinds that find faults in a sweep."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["gauss", "lattice", "ties", "tiny", "huge", "bits", "outlier", "zeros", "equal"]))
    shape = (rows, columns)
    if kind in ("lattice", "ties"):
        points = np.array(LATTICE, np.float32)
        x = rng.choice(neighbours(points) if kind == "ties" else np.concatenate([points, -points]), shape)
        x = x * np.ldexp(np.float32(1), rng.integers(-9, 9, (rows, 1)).astype(np.int32))
    elif kind == "bits":
        x = finite_bits(rng, shape)
    elif kind == "equal":
        x = np.broadcast_to(rng.standard_normal((rows, 1)), shape)
    else:
        x = rng.standard_normal(shape)
        size = {"tiny": 2.0 ** rng.integers(-149, -90), "huge": 2.0 ** rng.integers(60, 125)}.get(kind, 1.0)
        x = x * size
        if kind == "outlier":
            x[rng.integers(0, rows), rng.integers(0, columns)] = 10.0 ** rng.integers(1, 30)
        if kind == "zeros":
            x = x * (rng.random((rows, columns // 16)) < 0.5).repeat(16, axis=1)
    return np.ascontiguousarray(x, dtype=np.float32)


def stored_as(x: np.ndarray, word: Word) -> np.ndarray:
    """``x`` rounded to ``word`` and stored as that; what would overflow is cut to the largest finite value."""
    if word is Word.FLOAT16:
        return np.clip(x, -65504, 65504).astype(np.float16)
    if word is Word.BFLOAT16:
        top = np.float32(3.3895e38)
        return narrow_bf16(np.clip(x, -top, top))
    return x


words = st.sampled_from(list(Word))
