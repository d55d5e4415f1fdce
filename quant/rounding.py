"""Weights to codes under known scales: the definition, and the fast path that is pinned to it.

Division, not a product with the inverse; float32 throughout.  Two conventions for the sign of a zero are in use
and one exporter breaks ties another way, so a rounding rule is part of the call.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from quant import blocks
from quant.backend import Backend
from quant.cast import encode, pack_nibbles, thresholds
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Floats, Word, round_to, widen
from quant.sweep.reference import add_squares


class Rule(IntEnum):
    """How a ratio w / step becomes an E2M1 code."""

    NEGATIVE = 0
    """modelopt NVFP4, compressed-tensors: nearest even; the sign bit says ratio < 0, so -0.0 is code 0."""
    SIGN_BIT = 1
    """OCP, torchao: nearest even; the sign bit is that of the weight, so -0.0 is code 8."""
    TIES_DOWN = 2
    """modelopt MXFP4: all ties go to the smaller magnitude, and an exact zero is stored as code 8."""


_BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)


def bounds(rule: Rule) -> NDArray[np.float32]:
    """float32 [7]: a ratio strictly above ``bounds[i]`` gets a magnitude code above i."""
    return _BOUNDS if rule is Rule.TIES_DOWN else thresholds(E2M1)


def pack_fp4(
    w: Floats,
    step: NDArray[np.float32],
    block: int,
    rule: Rule = Rule.NEGATIVE,
    backend: Backend = Backend.CPU,
) -> NDArray[np.uint8]:
    """E2M1 codes of ``w`` [..., K], packed two per byte: uint8 [..., K / 2].

    ``w``: float32, float16 or bfloat16 words, finite; ``step``: float32 [..., K / block], what a code step is worth,
    finite.  Magnitudes above 6 steps saturate.  A step of 0 gives code 0: every code then means 0.
    Raises NumericError on ragged K, on steps that do not fit, and on a block that is no multiple of 16.
    """
    require_packable(step.shape, w.shape, block)
    if backend is Backend.CPU:
        from quant import cpu  # Numba: imported where it is first used

        return cpu.pack_fp4(w, np.ascontiguousarray(step), block, int(rule), bounds(rule))
    ratio = _ratio(widen(w), blocks.spread(step, w.shape, (block,)))
    codes = np.searchsorted(bounds(rule), np.abs(ratio)).astype(np.uint8)
    return pack_nibbles(codes.reshape(w.shape) | (_sign(widen(w), ratio, rule).astype(np.uint8) << np.uint8(3)))


def require_packable(step: tuple[int, ...], shape: tuple[int, ...], block: int) -> None:
    """Nothing; raises NumericError when a weight of ``shape`` cannot be packed under steps of shape ``step``."""
    if block <= 0 or block % 16:
        raise NumericError(f"FP4 codes are packed sixteen at a time: a block of {block} is no multiple of 16")
    blocks.require_whole(shape, block)
    blocks.require_fit(step, shape, (block,))


def _ratio(w: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.where(step == 0, w * np.float32(0), w / step)


def _sign(w: NDArray[np.float32], ratio: NDArray[np.float32], rule: Rule) -> NDArray[np.bool_]:
    if rule is Rule.NEGATIVE:
        return ratio < 0
    return np.signbit(w) if rule is Rule.SIGN_BIT else ~(w > 0)


def encode_fp8(
    w: Floats,
    step: NDArray[np.float32],
    block: blocks.Block,
    word: Word = Word.FLOAT32,
    backend: Backend = Backend.CPU,
) -> NDArray[np.uint8]:
    """E4M3 codes of w / step, clamped to ±448, nearest even: uint8, shape of ``w``.

    ``step``: float32 of shape ``blocks.grid(w.shape, block)``, finite; edges may be partial.  ``word``: precision the
    quotient is rounded to first (an exporter that divides a bfloat16 tensor by a scalar stays in bfloat16).
    A step of 0 gives code 0 or 0x80.
    """
    if backend is Backend.CPU:
        from quant import cpu

        return cpu.encode_fp8(w, step, block, word)
    ratio = round_to(_ratio(widen(w), blocks.spread(step, w.shape, block)), word)
    with np.errstate(all="ignore"):
        return encode(E4M3, np.clip(ratio, np.float32(-E4M3.max), np.float32(E4M3.max))).codes


def encode_scales(x: NDArray[np.float32], backend: Backend = Backend.CPU) -> NDArray[np.uint8]:
    """E4M3 codes of non-negative finite float32 ``x``, saturating, nearest even; uint8, shape of ``x``."""
    if backend is Backend.CPU:
        from quant import cpu

        return cpu.encode_e4m3(x)
    return encode(E4M3, x).codes


def block_amax(w: Floats, block: int, backend: Backend = Backend.CPU) -> NDArray[np.float32]:
    """The largest magnitude of each ``block`` elements along the last axis, float32 [..., K / block]; ``w`` finite."""
    blocks.require_whole(w.shape, block)
    if backend is Backend.CPU:
        from quant import cpu

        return cpu.block_amax(w, block)
    return blocks.amax(widen(w), (block,))


def block_losses(
    w: Floats, step: NDArray[np.float32], block: int, backend: Backend = Backend.CPU
) -> NDArray[np.float32]:
    """Σ over each block of (|w| - e2m1(|w| / step) · step)², float32 [..., K / block].

    ``step``: float32 [..., K / block], positive; the same arithmetic and order as in
    ``sweep.reference``, so losses compare.
    """
    blocks.require_fit(step.shape, w.shape, (block,))
    if block % 2:
        raise NumericError(f"losses are added in halves: a block of {block} has none")
    if backend is Backend.CPU:
        from quant import cpu

        return cpu.block_losses(w, np.ascontiguousarray(step), block)
    a = np.abs(widen(w)).reshape(*step.shape, block)
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.minimum(a / step[..., None], np.float32(E2M1.max))
        err = a - E2M1.values[encode(E2M1, ratio).codes] * step[..., None]
        return add_squares(err * err)
