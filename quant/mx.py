"""MXFP4 and MXFP8 from weights: blocks of 32 under a power of two (E8M0).

The block scale follows one of four rules, named below after what they do with amax; exporters differ.  Sources: OCP
Microscaling v1.0 section 6.3 (FLOOR), modelopt 0.47 (CEIL), compressed-tensors 0.20 (NEAREST), torchao 0.18 (EVEN).
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quant import blocks, rounding
from quant.backend import Backend
from quant.cast import decode
from quant.codes import E2M1, E8M0, FloatCode
from quant.errors import NumericError
from quant.floats import Floats, largest, require_finite
from quant.quantised import Quantised
from quant.rounding import Rule
from quant.scheme import MXFP4, MXFP8, Scheme

BIAS = E8M0.bias
_LAST = 254  # 255 is NaN


class ScaleRule(StrEnum):
    """How amax becomes the exponent of a block; emax is 2 for E2M1 and 8 for E4M3."""

    FLOOR = "floor"
    """OCP: floor(log2(amax)) - emax.  Values above the largest code's reach saturate."""
    CEIL = "ceil"
    """modelopt: ceil(log2(amax / largest value)).  Nothing saturates."""
    NEAREST = "nearest"
    """compressed-tensors: floor(log2(amax rounded to one mantissa bit)) - emax, for either element."""
    EVEN = "even"
    """torchao: the same with amax rounded to the element's own mantissa bits."""


def _emax(element: FloatCode) -> int:
    return int(np.floor(np.log2(element.max)))


def scale_codes(amax: NDArray[np.float32], element: FloatCode, rule: ScaleRule) -> NDArray[np.uint8]:
    """E8M0 codes for block ``amax`` (float32, any shape), within 0 … 254; amax 0 gives code 0.

    Raises NumericError on an amax that is negative or not finite.
    """
    require_finite(amax, "amax value")
    if (amax < 0).any():
        raise NumericError(f"an amax is negative: {float(amax.min())}")
    if rule is ScaleRule.CEIL:
        with np.errstate(divide="ignore"):
            # The exporter takes log2 in float32, where an amax a hair above a power of two counts as that power.
            log = np.log2((amax / np.float32(element.max)).astype(np.float64)).astype(np.float32)
        exponent = np.ceil(np.maximum(log, np.float32(-BIAS))).astype(np.int64)
    else:
        kept = {ScaleRule.FLOOR: None, ScaleRule.NEAREST: E2M1.mbits, ScaleRule.EVEN: element.mbits}[rule]
        exponent = _exponent(amax, kept) - _emax(element)
    return np.where(amax == 0, 0, np.clip(exponent + BIAS, 0, _LAST)).astype(np.uint8)


def _exponent(amax: NDArray[np.float32], mantissa_bits: int | None) -> NDArray[np.int64]:
    """floor(log2(amax)), after rounding amax half up to ``mantissa_bits`` (None: as it is)."""
    bits = np.ascontiguousarray(amax).view(np.uint32).astype(np.int64)
    if mantissa_bits is not None:
        bits += 1 << (22 - mantissa_bits)
    normal = (bits >> 23) - 127
    tiny = np.frexp(np.where(amax > 0, amax, np.float32(1)))[1].astype(np.int64) - 1
    return np.where(normal > -127, normal, tiny).reshape(amax.shape)


def quantise(
    w: Floats,
    scheme: Scheme = MXFP4,
    scale_rule: ScaleRule = ScaleRule.FLOOR,
    code_rule: Rule = Rule.SIGN_BIT,
    backend: Backend = Backend.CPU,
) -> Quantised:
    """``w`` (float32, float16 or bfloat16 words, [..., K]) in MXFP4 or MXFP8.

    The OCP way is FLOOR with ties to even; modelopt's MXFP4 is CEIL with ``Rule.TIES_DOWN``, its MXFP8 CEIL;
    ``code_rule`` concerns MXFP4 only.  A zero block gets scale code 0 and zero codes.  Saturates.  Raises
    NumericError on NaN, infinity and ragged K.
    """
    size = scheme.block[0]
    largest(w)
    blocks.require_whole(w.shape, size)
    scales = scale_codes(rounding.block_amax(w, size, backend), scheme.element, scale_rule)
    return with_scales(w, scales, scheme, code_rule, backend)


def with_scales(
    w: Floats,
    scales: NDArray[np.uint8],
    scheme: Scheme = MXFP4,
    code_rule: Rule = Rule.SIGN_BIT,
    backend: Backend = Backend.CPU,
) -> Quantised:
    """``w`` quantised under given E8M0 codes, uint8 [..., K / 32].  Raises NumericError on code 255 and on NaN."""
    largest(w)
    require_no_nan(scales)
    blocks.require_fit(scales.shape, w.shape, scheme.block)
    step = decode(E8M0, scales)
    if scheme.packed:
        return Quantised(scheme, rounding.pack_fp4(w, step, scheme.block[0], code_rule, backend), scales)
    return Quantised(scheme, rounding.encode_fp8(w, step, scheme.block, backend=backend), scales)


def require_no_nan(scales: NDArray[np.uint8]) -> None:
    """Nothing; raises NumericError naming the first position of E8M0 code 255 (NaN)."""
    bad = scales == 255
    if count := int(np.count_nonzero(bad)):
        at = [int(i) for i in np.unravel_index(int(np.argmax(bad)), scales.shape)]
        raise NumericError(f"{count} of {scales.size} E8M0 scales are 255 (NaN), the first at {at}")


__all__ = ["MXFP4", "MXFP8", "ScaleRule", "quantise", "require_no_nan", "scale_codes", "with_scales"]
