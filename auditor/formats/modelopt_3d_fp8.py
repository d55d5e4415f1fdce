"""Fused 3-D FP8 experts as modelopt writes them (Llama 4, gpt-oss): F8_E4M3 [E, K, N], one scale for all experts."""

from __future__ import annotations

from auditor.formats.base import FLOATS, FP8, Format, Part, Role
from quant.scheme import FP8_TENSOR

FORMAT = Format(
    name="modelopt-3d-fp8",
    parts={
        Role.CODES: Part("", FP8),
        Role.SCALES: Part("_weight_scale", FLOATS, scalar=True),
        Role.INPUT: Part("_input_scale", FLOATS, scalar=True, required=False),
    },
    scheme=FP8_TENSOR,
    axis=-2,
    stemmed=True,
    amax_unit=448.0,
)
