"""NVFP4 as modelopt writes it: value = code * weight_scale * weight_scale_2; input_scale = amax / (6 * 448)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from auditor.formats.base import F32, FLOATS, FP8, SCALARISH, U8, Format, Part, Role, Shape
from quant.scheme import NVFP4, NVFP4_BLOCK32


def is_half(shapes: Mapping[Role, Shape]) -> bool:
    """Whether there is one scale per 32 weights: W4A8, or an export that lost half of its scales."""
    codes, scales = shapes[Role.CODES], shapes[Role.SCALES]
    return len(codes) == len(scales) >= 1 and scales[:-1] == codes[:-1] and scales[-1] * 32 == codes[-1] * 2


def _is_whole(shapes: Mapping[Role, Shape]) -> bool:
    return not is_half(shapes)


_WEIGHTS = {
    Role.CODES: Part("weight", U8),
    Role.SCALES: Part("weight_scale", FP8),
    Role.GLOBAL: Part("weight_scale_2", SCALARISH, usual=F32, scalar=True),
}
_INPUT = {Role.INPUT: Part("input_scale", SCALARISH, usual=F32, scalar=True)}
_AWQ = {Role.PRE_QUANT: Part("pre_quant_scale", FLOATS)}
_LORA = {
    Role.LORA_A: Part("weight_quantizer._svdquant_lora_a", FLOATS),
    Role.LORA_B: Part("weight_quantizer._svdquant_lora_b", FLOATS),
}

FORMAT = Format(
    name="modelopt-nvfp4",
    parts=_WEIGHTS | _INPUT,
    scheme=NVFP4,
    absent=frozenset({"pre_quant_scale", "input_scale_2", "svdquant_lora_a", "weight_quantizer._svdquant_lora_a"}),
    fits=_is_whole,
    amax_unit=2688.0,
)
W4A16 = replace(FORMAT, name="modelopt-w4a16", parts=_WEIGHTS, absent=FORMAT.absent | {"input_scale"})
AWQ = replace(
    FORMAT,
    name="modelopt-awq",
    parts=_WEIGHTS | _AWQ | {Role.INPUT: _INPUT[Role.INPUT]._replace(required=False)},
    absent=FORMAT.absent - {"pre_quant_scale"},
    fits=None,  # its other parts tell it from W4A8: half of the scales is a fault here
)
# Scales of blocks of 32 and FP8 activations: input_scale = amax / 448.
W4A8 = replace(
    FORMAT,
    name="modelopt-w4a8",
    parts=_WEIGHTS | {Role.INPUT: _INPUT[Role.INPUT]._replace(required=False)},
    scheme=NVFP4_BLOCK32,
    fits=is_half,
    amax_unit=448.0,
)
