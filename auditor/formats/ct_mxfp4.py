"""MXFP4 as compressed-tensors writes it: weight_packed U8 [N, K/2], weight_scale U8 (E8M0) [N, K/32]."""

from __future__ import annotations

from auditor.formats.base import E8M0_BYTES, U8, Format, Part, Role
from quant.scheme import MXFP4

FORMAT = Format(
    name="ct-mxfp4",
    parts={Role.CODES: Part("weight_packed", U8), Role.SCALES: Part("weight_scale", E8M0_BYTES)},
    scheme=MXFP4,
)
