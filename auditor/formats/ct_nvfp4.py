"""NVFP4 as compressed-tensors writes it: value = code * weight_scale / weight_global_scale.

Both globals are 2688 / amax, F32 of shape [1].  NVFP4A16 has no input_global_scale.
"""

from __future__ import annotations

from auditor.formats.base import F32, FP8, SCALARISH, U8, Format, Part, Role
from quant.scheme import NVFP4_DIVIDE

FORMAT = Format(
    name="ct-nvfp4",
    parts={
        Role.CODES: Part("weight_packed", U8),
        Role.SCALES: Part("weight_scale", FP8),
        Role.GLOBAL: Part("weight_global_scale", SCALARISH, usual=F32, scalar=True),
        Role.INPUT: Part("input_global_scale", SCALARISH, usual=F32, scalar=True, required=False),
    },
    scheme=NVFP4_DIVIDE,
    amax_unit=2688.0,
)
