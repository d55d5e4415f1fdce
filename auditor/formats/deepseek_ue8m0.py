"""Block FP8 whose weight_scale_inv is stored as F8_E8M0: powers of two (scale_fmt ue8m0)."""

from __future__ import annotations

from dataclasses import replace

from auditor.formats.base import E8M0_BYTES, FP8, Part, Role
from auditor.formats.deepseek_fp8 import FORMAT as DEEPSEEK
from quant.codes import E8M0
from quant.scheme import FP8_BLOCK

UE8M0_BLOCK = FP8_BLOCK._replace(scale=E8M0)

FORMAT = replace(
    DEEPSEEK,
    name="deepseek-fp8-ue8m0",
    parts={Role.CODES: Part("weight", FP8), Role.SCALES: Part("weight_scale_inv", E8M0_BYTES)},
    scheme=UE8M0_BLOCK,
)
