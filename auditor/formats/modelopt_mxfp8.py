"""MXFP8: weight F8_E4M3 [N, K], weight_scale U8 (E8M0) [N, K/32], which is 2^(b - 127), not a number b."""

from __future__ import annotations

from auditor.formats.base import E8M0_BYTES, FP8, Format, Part, Role
from quant.scheme import MXFP8

FORMAT = Format(
    name="modelopt-mxfp8",
    names={"compressed-tensors": "ct-mxfp8"},
    parts={Role.CODES: Part("weight", FP8), Role.SCALES: Part("weight_scale", E8M0_BYTES)},
    scheme=MXFP8,
)
