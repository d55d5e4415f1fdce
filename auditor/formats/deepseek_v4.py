"""DeepSeek-V4: linears F8_E4M3 with ``.scale`` E8M0 per 128x128; experts packed FP4 in I8 with E8M0 per 32."""

from __future__ import annotations

from auditor.formats.base import E8M0_BYTES, FP8, Format, Part, Role
from auditor.formats.deepseek_ue8m0 import UE8M0_BLOCK
from quant.scheme import MXFP4

FORMAT = Format(
    name="deepseek-v4-fp8",
    parts={Role.CODES: Part("weight", FP8), Role.SCALES: Part("scale", E8M0_BYTES)},
    scheme=UE8M0_BLOCK,
)
EXPERTS = Format(
    name="deepseek-v4-fp4",
    parts={Role.CODES: Part("weight", frozenset({"I8", "U8", "F4"})), Role.SCALES: Part("scale", E8M0_BYTES)},
    scheme=MXFP4,
)
