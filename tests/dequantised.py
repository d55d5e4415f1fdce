"""What the tensors of a quantised layer mean, in float64, by arithmetic of its own: the formats' definitions alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.encode import Made
from tests.raw import Raw

Values = NDArray[np.float64]


def small_float(code: NDArray[np.uint8], ebits: int, mbits: int, bias: int) -> Values:
    """The value of a signed code of 1 + ``ebits`` + ``mbits`` bits, without its NaN."""
    magnitude = code.astype(np.int64) & ((1 << (ebits + mbits)) - 1)
    exponent, mantissa = magnitude >> mbits, magnitude & ((1 << mbits) - 1)
    value = np.where(
        exponent == 0,
        mantissa * 2.0 ** (1 - bias - mbits),
        (1 + mantissa / (1 << mbits)) * 2.0 ** (exponent - bias).astype(np.float64),
    )
    return np.where(code >> (ebits + mbits) & 1, -value, value)


def e4m3(code: NDArray[np.uint8]) -> Values:
    return np.where(code & 0x7F == 0x7F, np.nan, small_float(code, 4, 3, 7))


def e8m0(code: NDArray[np.uint8]) -> Values:
    return np.where(code == 255, np.nan, 2.0 ** (code.astype(np.float64) - 127))


def nibbles(stored: NDArray[np.uint8]) -> Values:
    """[.., K / 2] bytes as [.., K] values, low nibble first."""
    both = np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], -1)
    return small_float(both, 2, 1, 1)


def layer(made: Made, tensors: Mapping[str, Raw]) -> tuple[Values, tuple[int, int]]:
    """The weights [E, N, K], and rows and columns that share a scale; a whole row where all of it does."""
    codes, scales = tensors[made.codes], tensors[made.scales]
    raw = codes.array()
    if made.kind in ("nvfp4", "mxfp4", "mxfp8"):
        held = scales.array()
        if made.transposed:
            raw, held = raw.swapaxes(1, 2), held.swapaxes(1, 2)
        if raw.ndim == held.ndim + 1:
            raw = raw.reshape(*raw.shape[:-2], -1)
        values = nibbles(raw) if made.kind != "mxfp8" else e4m3(raw)
        step = e8m0(held) if made.kind != "nvfp4" else e4m3(held)
        if made.kind == "nvfp4":
            wide = tensors[made.global_scale].values().reshape(-1)
            wide = wide.reshape(-1, 1, 1) if wide.size > 1 else wide[0]
            step = step / wide if made.divides else step * wide
        values = values * np.repeat(step, made.block, axis=-1)
        block = (1, made.block)
    else:
        values = e4m3(raw)
        held = e8m0(scales.array()) if made.kind == "fp8e8m0" else scales.values()
        block = (1, values.shape[-1])
        if held.ndim == 4:
            held = held[:, 0, :, 0]
        if held.size == 1 and held.ndim < 2:
            values = values * held.reshape(-1)[0]
        elif held.size == values.shape[-2] and held.size > 1:
            values = values * held.reshape(-1, 1)
        else:
            block = (128, 128)
            rows, columns = values.shape
            values = values * np.repeat(np.repeat(held, 128, 0)[:rows], 128, 1)[:, :columns]
    return values.reshape(-1, *values.shape[-2:]), block


def gain(made: Made, tensors: Mapping[str, Raw]) -> Values | float:
    """What multiplies each input column before the weights do (AWQ)."""
    return tensors[made.pre_quant].values() if made.pre_quant else 1.0
