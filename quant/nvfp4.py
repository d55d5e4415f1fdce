"""NVFP4 from weights: blocks of 16 (or 32), E4M3 block scales under one float32 scale.

Formulas and order of rounding as in modelopt 0.45 to 0.47 (multiply) and compressed-tensors 0.20 (divide), bit for
bit on finite weights, except where an exporter is wrong: an all-zero tensor gets a usable global scale and codes 0
instead of 0/0, and NaN or infinity raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quant import blocks, rounding
from quant.backend import Backend
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Floats, Word, largest, require_finite, round_to, words
from quant.quantised import Quantised
from quant.rounding import Rule
from quant.scheme import NVFP4, GlobalScale, Scheme

NORM = np.float32(E4M3.max)
"""What the largest block's scale becomes."""
NORM_FOUR_OVER_SIX = np.float32(256)
"""The same under four-over-six, which needs room for scales 1.5 times as large."""
SMALLEST_SCALE = np.float32(E4M3.smallest)
_SIX = np.float32(E2M1.max)
_DIVIDE_ZERO = 0x20
"""compressed-tensors writes 0.125 for a block scale that is or becomes 0."""


class Method(StrEnum):
    """How the block scales are chosen."""

    DYNAMIC = "dynamic"
    """From each block's amax: s = amax / (6 · ws2)."""
    STATIC = "static"
    """The same in the order of the static export: s = (amax / 6) · 448 / (global amax / 6)."""
    SWEEP = "sweep"
    """The least squared error over all 126 scales."""
    FOUR_OVER_SIX = "four-over-six"
    """The better of amax / 6 and amax / 4, normalised by 256."""


def shared_amax(weights: Iterable[Floats]) -> np.float32:
    """The common amax of a fused set (q, k, v; gate, up; all experts); raises NumericError on NaN or infinity."""
    return max((largest(w) for w in weights), default=np.float32(0))


def weight_scale_2(
    amax: NDArray[np.float32] | np.float32 | float, norm: np.float32 = NORM, peak: np.float32 = _SIX
) -> NDArray[np.float32]:
    """amax / (6 · norm) in float32, shape of ``amax``.

    An amax of 0 gives 1 (any positive value is right, there is nothing to scale), and one so small that the quotient
    underflows gives the smallest normal float32: the result is positive and finite.  ``peak`` 1 leaves the 6 out, as
    W4A8 does.  Raises NumericError on an amax that is negative or not finite.
    """
    top = _usable(amax)
    scale = top / (peak * norm)
    scale = np.where(scale == 0, np.finfo(np.float32).tiny, scale)
    return np.asarray(np.where(top == 0, np.float32(1), scale), np.float32)


def weight_global_scale(
    amax: NDArray[np.float32] | np.float32 | float, word: Word = Word.FLOAT32
) -> NDArray[np.float32]:
    """compressed-tensors' divisor (1 / amax) · 2688, shape of ``amax``; 1 where amax is 0 or the result overflows.

    A scalar over a tensor is, in torch, the reciprocal times the scalar: rounded twice.  ``word``: to what precision.
    llm-compressor works in the dtype of the weight, so a bfloat16 model gets eight significant bits.
    Raises NumericError on an amax that is negative or not finite.
    """
    top = _usable(amax)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = round_to(np.asarray(np.float32(1) / top, np.float32), word)
        scale = round_to(inverse * (NORM * _SIX), word)
    return np.asarray(np.where(np.isfinite(scale), scale, np.float32(1)), np.float32)


def _usable(amax: NDArray[np.float32] | np.float32 | float) -> NDArray[np.float32]:
    """``amax`` as float32; NumericError where it is negative or not finite."""
    top = np.asarray(amax, np.float32)
    require_finite(top, "amax value")
    if (top < 0).any():
        raise NumericError(f"an amax is negative: {float(top.min())}")
    return top


def clamp_scales(s: NDArray[np.float32]) -> NDArray[np.uint8]:
    """E4M3 codes of float32 ``s``, clamped to [2^-9, 448] first: never 0, never NaN."""
    return rounding.encode_scales(np.clip(s, SMALLEST_SCALE, NORM))


def dynamic_scales(block_amax: NDArray[np.float32], ws2: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale codes amax / (6 · ws2), shape of ``block_amax``; a zero block gets 1.0 (0x38)."""
    with np.errstate(over="ignore"):
        s = block_amax / (_SIX * ws2)
    return clamp_scales(np.where(s == 0, np.float32(1), s))


def static_scales(
    block_amax: NDArray[np.float32], global_amax: NDArray[np.float32], norm: np.float32 = NORM
) -> NDArray[np.uint8]:
    """Scale codes (amax / 6) · norm / (global amax / 6), shape of ``block_amax``.

    A zero block counts as 6 (the exporter's guard against 0), so it gets 448 whenever the global amax is at most 6;
    in an all-zero tensor every scale is 448 over codes 0.
    """
    s = block_amax / _SIX
    s = np.where(s == 0, np.float32(1), s)
    with np.errstate(all="ignore"):
        return clamp_scales(np.minimum(s * norm / (np.asarray(global_amax, np.float32) / _SIX), NORM))


def divide_scales(
    block_amax: NDArray[np.float32], divisor: NDArray[np.float32], word: Word = Word.FLOAT32
) -> NDArray[np.uint8]:
    """compressed-tensors: E4M3 codes of divisor · (amax / 6), the quotient rounded to ``word``; 0 becomes 0.125."""
    s = np.minimum(divisor * round_to(block_amax / _SIX, word), NORM)
    codes = rounding.encode_scales(s)
    codes[codes == 0] = _DIVIDE_ZERO
    return codes


def require_method(method: Method, scheme: Scheme) -> None:
    """Nothing; raises NumericError when ``scheme`` has no such method."""
    if method is Method.DYNAMIC:
        return
    if scheme.block != (16,):
        raise NumericError(f"{method} scales are defined for blocks of 16, not {scheme.block}")
    if scheme.global_scale is GlobalScale.DIVIDE and method is not Method.SWEEP:
        raise NumericError(f"the divide convention has no method {method}")


def with_scales(
    w: Floats,
    scales: NDArray[np.uint8],
    global_scale: NDArray[np.float32] | float,
    scheme: Scheme = NVFP4,
    backend: Backend = Backend.CPU,
) -> Quantised:
    """``w`` quantised under given scale codes (uint8 [..., K / block]) and global scale ([] or [E]).

    Raises NumericError on NaN or infinity in ``w``, on shapes that do not fit and on NaN scales.
    """
    largest(w)
    return _coded(w, scales, global_scale, scheme, backend)


def _coded(
    w: Floats, scales: NDArray[np.uint8], global_scale: NDArray[np.float32] | float, scheme: Scheme, backend: Backend
) -> Quantised:
    """``with_scales`` for a weight that is known to be finite."""
    blocks.require_whole(w.shape, scheme.block[0])
    blocks.require_fit(scales.shape, w.shape, scheme.block)
    out = Quantised(scheme, np.empty(0, np.uint8), scales, np.asarray(global_scale, np.float32))
    step = out.steps()
    require_finite(step, "block scale")
    packed = rounding.pack_fp4(w, step, scheme.block[0], Rule.NEGATIVE, backend)
    return Quantised(scheme, packed, scales, out.global_scale)


def quantise(
    w: Floats,
    global_amax: NDArray[np.float32] | np.float32 | float | None = None,
    *,
    method: Method = Method.DYNAMIC,
    scheme: Scheme = NVFP4,
    per_expert: bool = False,
    word: Word | None = None,
    hessian: NDArray[np.float32] | None = None,
    backend: Backend = Backend.CPU,
) -> Quantised:
    """``w`` (float32, float16 or bfloat16 words, [..., K]) in NVFP4.

    ``global_amax``: None takes that of ``w`` (of each expert with ``per_expert``); a scalar or [E] shares one over a
    fused set.  ``scheme``: NVFP4 multiplies, NVFP4_DIVIDE divides (its ``method`` is DYNAMIC or SWEEP),
    NVFP4_BLOCK32 is W4A8 (DYNAMIC only).  ``word``: precision of the divide convention's quotients, by default float32.
    Zero blocks get codes 0; a block whose scale would leave [2^-9, 448] is clamped.  Raises NumericError on NaN,
    infinity, ragged K, and on a method that the scheme does not have.
    """
    size = scheme.block[0]
    require_method(method, scheme)
    blocks.require_whole(w.shape, size)
    top = _top(w, global_amax, per_expert)
    each = top.reshape(-1, *(1,) * (w.ndim - 1)) if top.ndim else top
    norm = NORM_FOUR_OVER_SIX if method is Method.FOUR_OVER_SIX else NORM
    if method is Method.SWEEP:
        return _swept(w, top, scheme, hessian, backend)
    amax = rounding.block_amax(w, size, backend)
    if scheme.global_scale is GlobalScale.DIVIDE:
        kind = word or Word.FLOAT32
        divisor = weight_global_scale(top, kind)
        wide = weight_global_scale(each, kind)
        return _coded(w, divide_scales(amax, wide, kind), divisor, scheme, backend)
    peak = np.float32(1) if size == 32 else _SIX
    ws2, wide = weight_scale_2(top, norm, peak), weight_scale_2(each, norm, peak)
    if method is Method.DYNAMIC:
        scales = dynamic_scales(amax, wide)
    elif method is Method.STATIC:
        scales = static_scales(amax, each)
    else:
        scales = _four_over_six(w, amax, each, wide, backend)
    return _coded(w, scales, ws2, scheme, backend)


def _top(
    w: Floats, global_amax: NDArray[np.float32] | np.float32 | float | None, per_expert: bool
) -> NDArray[np.float32]:
    if per_expert and w.ndim < 3:
        raise NumericError(f"shape {w.shape} has no experts")
    if global_amax is None:
        own = [largest(expert) for expert in w] if per_expert else largest(w)
        return np.asarray(own, np.float32)
    largest(w)
    top = np.asarray(global_amax, np.float32)
    if top.shape not in ((), w.shape[:1]):
        raise NumericError(f"global amax has shape {top.shape}; a weight {w.shape} takes [] or one value per expert")
    return top


def _swept(
    w: Floats,
    top: NDArray[np.float32],
    scheme: Scheme,
    hessian: NDArray[np.float32] | None,
    backend: Backend,
) -> Quantised:
    from quant.sweep import sweep

    raw = words(w)[1]
    shaped = raw if w.ndim in (2, 3) else raw.reshape(-1, w.shape[-1])
    codes = sweep(shaped, top, hessian=hessian, backend=backend).codes.reshape(*w.shape[:-1], -1)
    divides = scheme.global_scale is GlobalScale.DIVIDE
    return _coded(w, codes, weight_global_scale(top) if divides else weight_scale_2(top), scheme, backend)


def _four_over_six(
    w: Floats,
    amax: NDArray[np.float32],
    global_amax: NDArray[np.float32],
    ws2: NDArray[np.float32],
    backend: Backend,
) -> NDArray[np.uint8]:
    """Scale codes of the better of amax / 6 and amax / 4 per block, by the ordered float32 squared error; ties: 6."""
    both = []
    limit = np.finfo(np.float32).max
    for top in (amax, np.minimum(amax, limit / np.float32(1.5)) * np.float32(1.5)):
        codes = static_scales(top, global_amax, NORM_FOUR_OVER_SIX)
        step = _calibrated_step(top, global_amax, E4M3.values[codes] * ws2)
        both.append((codes, rounding.block_losses(w, step, 16, backend)))
    return np.where(both[1][1] < both[0][1], both[1][0], both[0][0])


def _calibrated_step(
    amax: NDArray[np.float32], global_amax: NDArray[np.float32], exact: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The step the exporter's calibrator judges a choice by: the E4M3 round trip of amax / 6, an ulp off ``exact``.

    Below 2^-24 the exporter replaces the divisor by 1; there ``exact``, what the file will mean, is used.
    """
    with np.errstate(all="ignore"):
        peak = global_amax * np.float32(NORM / NORM_FOUR_OVER_SIX) / _SIX
        up = NORM * (np.float32(1) / peak)  # a scalar over a tensor, as in weight_global_scale
        trip = E4M3.values[rounding.encode_scales(np.minimum(amax / _SIX * up, NORM))] * (np.float32(1) / up)
    step = np.where(np.isfinite(peak) & (peak > np.float32(2.0**-24)), trip, exact)
    step = np.where(step > 0, step, exact)
    return np.asarray(np.where(step > 0, step, np.float32(1)), np.float32)
