"""gpt-oss MXFP4: blocks U8 [E, N, K/32, 16] and scales U8 (E8M0) [E, N, K/32]; gate and up rows interleave."""

from __future__ import annotations

from auditor.formats.base import E8M0_BYTES, U8, Format, GateUp, Part, Role
from quant.scheme import MXFP4

FORMAT = Format(
    name="gpt-oss-mxfp4",
    parts={Role.CODES: Part("_blocks", U8), Role.SCALES: Part("_scales", E8M0_BYTES)},
    scheme=MXFP4,
    stemmed=True,
    gate_up=GateUp.INTERLEAVED,
)
