"""MXFP4 as modelopt and Quark write it: weight U8 [N, K/2], weight_scale U8 (E8M0) [N, K/32]."""

from __future__ import annotations

from auditor.formats.base import E8M0_BYTES, SCALARISH, U8, Format, Part, Role
from quant.scheme import MXFP4

FORMAT = Format(
    name="modelopt-mxfp4",
    names={"quark": "quark-mxfp4"},
    parts={
        Role.CODES: Part("weight", U8),
        Role.SCALES: Part("weight_scale", E8M0_BYTES),
        Role.INPUT: Part("input_scale", SCALARISH, scalar=True, required=False),
    },
    scheme=MXFP4,
    absent=frozenset({"weight_scale_2"}),
    amax_unit=448.0,
)
