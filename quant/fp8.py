"""FP8 (E4M3) from weights: one float32 scale per tensor, per channel (row) or per 128 × 128 block.

scale = amax / 448, codes = e4m3(clamp(w / scale)): modelopt's and compressed-tensors' formula, with the clamp that
some casts leave out.  An all-zero tensor, row or block gets scale 1 and codes 0 instead of 0/0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant import blocks, rounding
from quant.backend import Backend
from quant.codes import E4M3
from quant.errors import NumericError
from quant.floats import Floats, Word, largest, require_finite, round_to, widen, words
from quant.quantised import Quantised
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, Scheme

_CHUNK = 1 << 20  # elements widened at a time for an amax


def scales_of(amax: NDArray[np.float32], word: Word = Word.FLOAT32) -> NDArray[np.float32]:
    """amax / 448, shape of ``amax``, the quotient rounded to ``word``; 1 where amax is 0.

    A quotient that underflows to 0 becomes the smallest normal float32.  Raises NumericError on an amax that is
    negative or not finite.
    """
    require_finite(amax, "amax value")
    if (amax < 0).any():
        raise NumericError(f"an amax is negative: {float(amax.min())}")
    scale = round_to(np.asarray(amax / np.float32(E4M3.max), np.float32), word)
    scale = np.where(scale == 0, np.finfo(np.float32).tiny, scale)
    return np.asarray(np.where(amax == 0, np.float32(1), scale), np.float32)


def amax_of(w: Floats, block: blocks.Block) -> NDArray[np.float32]:
    """The amax of every block, float32 of shape ``blocks.grid(w.shape, block)``; row chunks, so little is widened."""
    if w.ndim != 2:
        return blocks.amax(widen(w), block)
    if block == (0, 0):
        return largest(w).reshape(1, 1)
    rows = block[0] if len(block) == 2 else 1
    take = max(rows, _CHUNK // max(w.shape[1], 1) // rows * rows)
    raw = words(w)[1]
    parts = [blocks.amax(widen(raw[r : r + take]), block) for r in range(0, len(w), take)]
    return np.concatenate(parts) if parts else np.zeros(blocks.grid(w.shape, block), np.float32)


def quantise(
    w: Floats,
    scheme: Scheme = FP8_TENSOR,
    amax: NDArray[np.float32] | None = None,
    word: Word = Word.FLOAT32,
    backend: Backend = Backend.CPU,
) -> Quantised:
    """``w`` (float32, float16 or bfloat16 words) in FP8.

    ``scheme``: FP8_TENSOR (scales [..., 1, 1]), FP8_CHANNEL ([..., N, 1]) or FP8_BLOCK ([..., ⌈N/128⌉, ⌈K/128⌉],
    edge blocks partial).  ``amax`` of that shape shares one over a fused set; None takes the weight's own.  ``word``:
    precision of w / scale; modelopt's per-tensor export divides in the dtype of the weight.  Raises NumericError on
    NaN and infinity.
    """
    largest(w)
    top = amax_of(w, scheme.block) if amax is None else np.asarray(amax, np.float32)
    blocks.require_fit(top.shape, w.shape, scheme.block)
    return with_scales(w, scales_of(top), scheme, word, backend)


def with_scales(
    w: Floats,
    scales: NDArray[np.float32],
    scheme: Scheme = FP8_TENSOR,
    word: Word = Word.FLOAT32,
    backend: Backend = Backend.CPU,
) -> Quantised:
    """``w`` quantised under given float32 scales.  Raises NumericError on a scale that is not finite and positive."""
    largest(w)
    blocks.require_fit(scales.shape, w.shape, scheme.block)
    require_finite(scales, "scale")
    if (scales <= 0).any():
        raise NumericError(f"a scale is not positive: {float(scales.min())}")
    return Quantised(scheme, rounding.encode_fp8(w, scales, scheme.block, word, backend), scales)


__all__ = ["FP8_BLOCK", "FP8_CHANNEL", "FP8_TENSOR", "amax_of", "quantise", "scales_of", "with_scales"]
