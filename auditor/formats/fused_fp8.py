"""FP8 in fused 3-D experts as transformers saves them: gate_up_proj F8_E4M3 [E, N, K], scales under underscore names.

``gate_up_proj_scale_inv`` holds one scale per 128x128 block, ``gate_up_proj_scale`` one per channel (fbgemm).
"""

from __future__ import annotations

from auditor.formats.base import FLOATS, FP8, Format, Part, Role
from quant.scheme import FP8_BLOCK, FP8_CHANNEL

BLOCK = Format(
    name="fused-fp8-block",
    parts={
        Role.CODES: Part("", FP8),
        Role.SCALES: Part("_scale_inv", FLOATS, usual=frozenset({"F32", "BF16"})),
    },
    scheme=FP8_BLOCK,
    stemmed=True,
    amax_unit=448.0,
)
CHANNEL = Format(
    name="fused-fp8-channel",
    parts={Role.CODES: Part("", FP8), Role.SCALES: Part("_scale", FLOATS)},
    scheme=FP8_CHANNEL,
    stemmed=True,
    amax_unit=448.0,
)
