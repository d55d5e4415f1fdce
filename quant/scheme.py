"""Scheme: how codes and scales become weights."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant import blocks
from quant.cast import decode
from quant.codes import E2M1, E4M3, E8M0, FloatCode
from quant.errors import NumericError


class GlobalScale(StrEnum):
    """What the second, tensor-wide scale does to a block scale."""

    NONE = "none"
    MULTIPLY = "multiply"
    """modelopt: value = code · (block scale · weight_scale_2)"""
    DIVIDE = "divide"
    """compressed-tensors: value = code · (block scale / weight_global_scale)"""


class Scheme(NamedTuple):
    """One kind of quantised weight.

    ``element``: format of the codes; ``scale``: format of the block scales, None for plain floats;
    ``block``: elements per scale along the last axes (0: the whole axis); ``global_scale``: the second scale.
    """

    element: FloatCode
    scale: FloatCode | None
    block: blocks.Block
    global_scale: GlobalScale = GlobalScale.NONE

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return self.element.bits == 4

    def block_scales(
        self, scales: NDArray[np.uint8] | NDArray[np.float32], global_scale: NDArray[np.float32] | float | None = None
    ) -> NDArray[np.float32]:
        """What one code step of each block is worth, float32, shape of ``scales``.

        ``scales``: codes (uint8) when the scheme has a scale format, else float32.  ``global_scale``: float32, a
        scalar or broadcastable to ``scales``; required exactly when the scheme has one.  NaN scales give NaN,
        a zero divisor gives infinity or NaN: a broken file shows as what it is.
        """
        if (global_scale is None) != (self.global_scale is GlobalScale.NONE):
            raise NumericError("a global scale belongs to exactly those schemes that have one")
        step = scales.astype(np.float32, copy=False) if self.scale is None else decode(self.scale, _codes(scales))
        if global_scale is None:
            return step
        wide = np.asarray(global_scale, np.float32)
        with np.errstate(all="ignore"):
            out = step * wide if self.global_scale is GlobalScale.MULTIPLY else step / wide
        return np.asarray(out, np.float32)

    def dequantise(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8] | NDArray[np.float32],
        global_scale: NDArray[np.float32] | float | None = None,
    ) -> NDArray[np.float32]:
        """The weights, float32, shape of ``codes`` (one code per element, not packed).

        The block scale meets the global scale first, in float32, then the code, as the exporters do.
        NaN codes or scales give NaN.  Raises NumericError when shapes do not fit.
        """
        step = self.block_scales(scales, global_scale)
        with np.errstate(all="ignore"):
            return decode(self.element, codes) * blocks.spread(step, codes.shape, self.block)


def _codes(scales: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.uint8]:
    if scales.dtype != np.uint8:
        raise NumericError(f"scale codes are uint8, not {scales.dtype}")
    return scales.astype(np.uint8, copy=False)


NVFP4 = Scheme(E2M1, E4M3, (16,), GlobalScale.MULTIPLY)
NVFP4_DIVIDE = Scheme(E2M1, E4M3, (16,), GlobalScale.DIVIDE)
NVFP4_BLOCK32 = Scheme(E2M1, E4M3, (32,), GlobalScale.MULTIPLY)
"""W4A8_NVFP4_FP8: blocks of 32, weight_scale_2 = amax / 448."""
MXFP4 = Scheme(E2M1, E8M0, (32,))
MXFP8 = Scheme(E4M3, E8M0, (32,))
FP8_TENSOR = Scheme(E4M3, None, (0, 0))
FP8_CHANNEL = Scheme(E4M3, None, (0,))
FP8_BLOCK = Scheme(E4M3, None, (128, 128))
