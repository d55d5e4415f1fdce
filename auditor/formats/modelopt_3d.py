"""Fused 3-D NVFP4 experts as modelopt writes them (Llama 4, gpt-oss).

``gate_up_proj`` U8 [E, K/2, N] with scales [E, K/16, N]: the quantised [E, N, K/2] tensor transposed, so that
nibbles pair and blocks run along axis -2.  Names join with underscores; one global scale serves all experts.
gpt-oss interleaves gate and up along N, Llama 4 concatenates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from auditor.formats.base import E8M0_BYTES, F32, FP8, SCALARISH, U8, Format, Part, Role, Shape
from auditor.formats.modelopt_nvfp4 import is_half
from quant.scheme import NVFP4

_WHY = "modelopt's fused experts in this format are not audited: no loader of them is known; file structure was checked"


def _is_whole(shapes: Mapping[Role, Shape]) -> bool:
    return not is_half(shapes)


FORMAT = Format(
    name="modelopt-3d",
    parts={
        Role.CODES: Part("", U8),
        Role.SCALES: Part("_weight_scale", FP8),
        Role.GLOBAL: Part("_weight_scale_2", SCALARISH, usual=F32, scalar=True),
        Role.INPUT: Part("_input_scale", SCALARISH, usual=F32, scalar=True, required=False),
    },
    scheme=NVFP4,
    axis=-2,
    stemmed=True,
    fits=_is_whole,
    amax_unit=2688.0,
)
# Quantised along the last axis as it is stored, which is not that of the matrix product.
W4A8 = replace(FORMAT, name="modelopt-3d-w4a8", scheme=None, axis=-1, fits=is_half, unaudited=_WHY, holds="")
MX = Format(
    name="modelopt-3d-mx",
    parts={Role.CODES: Part("", U8 | FP8), Role.SCALES: Part("_weight_scale", E8M0_BYTES)},
    stemmed=True,
    absent=frozenset({"_weight_scale_2"}),
    unaudited=_WHY,
    holds="",
)
