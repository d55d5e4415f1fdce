"""Fused 3-D NVFP4 experts as modelopt writes them (Llama 4, gpt-oss).

``gate_up_proj`` U8 [E, K/2, N] with scales [E, K/16, N]: the quantised [E, N, K/2] tensor transposed, so that
nibbles pair and blocks run along axis -2.  Names join with underscores; one global scale serves all experts.
gpt-oss interleaves gate and up along N, Llama 4 concatenates them.
"""

from __future__ import annotations

from auditor.formats.base import F32, FP8, SCALARISH, U8, Format, Part, Role
from quant.scheme import NVFP4

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
    amax_unit=2688.0,
)
