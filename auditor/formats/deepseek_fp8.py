"""Block FP8 as DeepSeek publishes it: weight F8_E4M3 and weight_scale_inv, which multiplies in spite of its name.

Scales are F32, BF16, F16 or F8_E8M0, one per 128x128 block; blocks at the edges are partial.
"""

from __future__ import annotations

from auditor.formats.base import FLOATS, FP8, Format, Part, Role
from quant.scheme import FP8_BLOCK

FORMAT = Format(
    name="deepseek-fp8",
    names={"modelopt": "modelopt-fp8-block"},
    parts={
        Role.CODES: Part("weight", FP8),
        Role.SCALES: Part("weight_scale_inv", FLOATS, usual=frozenset({"F32", "BF16"})),
        Role.INPUT: Part("input_scale", FLOATS, scalar=True, required=False),
    },
    scheme=FP8_BLOCK,
    amax_unit=448.0,
)
