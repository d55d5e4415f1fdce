"""NVFP4 with SVDQuant's low-rank branch: what `modelopt-awq` has, and two float matrices beside it.

Older exports call them ``svdquant_lora_a/b``; current ones keep the quantiser's own name.
"""

from __future__ import annotations

from dataclasses import replace

from auditor.formats.base import FLOATS, Part, Role
from auditor.formats.modelopt_nvfp4 import AWQ


def _svd(name: str, prefix: str) -> dict[Role, Part]:
    pre_quant = AWQ.parts[Role.PRE_QUANT]._replace(required=False)
    lora = {Role.LORA_A: Part(f"{prefix}a", FLOATS), Role.LORA_B: Part(f"{prefix}b", FLOATS)}
    return {**AWQ.parts, Role.PRE_QUANT: pre_quant, **lora}


FORMAT = replace(
    AWQ,
    name="modelopt-svd",
    parts=_svd("modelopt-svd", "svdquant_lora_"),
    absent=frozenset({"input_scale_2"}),
)
CURRENT = replace(FORMAT, name="modelopt-svd-quantizer", parts=_svd("", "weight_quantizer._svdquant_lora_"))
