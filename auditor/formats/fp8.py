"""FP8 weights with one float scale per tensor: modelopt, compressed-tensors, Quark and plain `fp8`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from auditor.formats.base import FLOATS, FP8, Format, Part, Role, Shape, block_shape
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR


def _per_tensor(shapes: Mapping[Role, Shape]) -> bool:
    """One scale: [], [1], or [1, 1] where the weight is larger than any block."""
    codes, scales = shapes[Role.CODES], shapes[Role.SCALES]
    if scales == (1, 1):
        return len(codes) == 2 and block_shape(codes, scales) is None
    return scales in ((), (1,)) and codes != (1,)


def _per_channel(shapes: Mapping[Role, Shape]) -> bool:
    codes, scales = shapes[Role.CODES], shapes[Role.SCALES]
    if len(codes) < 2 or _per_tensor(shapes):
        return False
    return scales in (codes[:-1], (*codes[:-1], 1)) and scales[-2:] != (1, 1)


def _per_block(shapes: Mapping[Role, Shape]) -> bool:
    return len(shapes[Role.SCALES]) >= 2 and not _per_channel(shapes) and not _per_tensor(shapes)


_SCALE = Part("weight_scale", FLOATS)
_INPUT = Part("input_scale", FLOATS, scalar=True, required=False)

FORMAT = Format(
    name="modelopt-fp8",
    names={"compressed-tensors": "ct-fp8", "quark": "quark-fp8", "fp8": "fp8", "fbgemm_fp8": "fbgemm-fp8"},
    parts={Role.CODES: Part("weight", FP8), Role.SCALES: _SCALE._replace(scalar=True), Role.INPUT: _INPUT},
    scheme=FP8_TENSOR,
    fits=_per_tensor,
    amax_unit=448.0,
)
CHANNEL = replace(
    FORMAT,
    name="modelopt-fp8-channel",
    names={"compressed-tensors": "ct-fp8-channel", "quark": "quark-fp8-channel", "fbgemm_fp8": "fbgemm-fp8"},
    parts={Role.CODES: Part("weight", FP8), Role.SCALES: _SCALE, Role.INPUT: _INPUT},
    scheme=FP8_CHANNEL,
    fits=_per_channel,
)
BLOCK = replace(
    FORMAT,
    name="modelopt-fp8-block",
    names={"compressed-tensors": "ct-fp8-block", "quark": "quark-fp8-block"},
    parts={Role.CODES: Part("weight", FP8), Role.SCALES: _SCALE},
    scheme=FP8_BLOCK,
    fits=_per_block,
)
