"""FP8 as image-model tools write it: weight F8_E4M3 and a scalar ``scale_weight``."""

from __future__ import annotations

from auditor.formats.base import FLOATS, Format, Part, Role
from quant.scheme import FP8_TENSOR

FORMAT = Format(
    name="comfy-fp8",
    parts={
        Role.CODES: Part("weight", frozenset({"F8_E4M3", "F8_E5M2"})),
        Role.SCALES: Part("scale_weight", FLOATS, scalar=True),
        Role.INPUT: Part("scale_input", FLOATS, scalar=True, required=False),
    },
    scheme=FP8_TENSOR,
    amax_unit=448.0,
)
