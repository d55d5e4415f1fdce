"""INT4 and INT8 families, bitsandbytes, torchao: recognised and listed as not checked; their files still are."""

from __future__ import annotations

from auditor.formats.base import FLOATS, U8, Format, Part, Role

_WHY = "is not audited: only NVFP4, MXFP4, MXFP8 and FP8 are; file structure and non-finite scales were checked"
_I32 = frozenset({"I32"})
_INT8 = frozenset({"I8", "U8"})


def _optional(suffix: str, dtypes: frozenset[str]) -> Part:
    return Part(suffix, dtypes, required=False)


_ANY = frozenset({"I8", "U8", "I32", "I64", "F16", "BF16", "F32", "F8_E4M3"})

# AWQ (modelopt), SmoothQuant, compressed-tensors int-quantized.
PLAIN = Format(
    name="integer",
    parts={
        Role.CODES: Part("weight", _INT8),
        Role.SCALES: Part("weight_scale", FLOATS),
        Role.GLOBAL: _optional("weight_scale_2", FLOATS),
        Role.PRE_QUANT: _optional("pre_quant_scale", FLOATS),
        Role.INPUT: _optional("input_scale", FLOATS),
        Role.ZERO_POINT: _optional("weight_zero_point", _ANY),
    },
    unaudited=f"an integer format (INT4 or INT8) {_WHY}",
)
PACKED = Format(
    name="ct-pack-quantized",
    parts={
        Role.CODES: Part("weight_packed", _I32),
        Role.SCALES: Part("weight_scale", FLOATS),
        Role.ZERO_POINT: _optional("weight_zero_point", _ANY),
        Role.OTHER: _optional("weight_shape", _ANY),
        Role.OUTPUT: _optional("weight_g_idx", _ANY),
    },
    unaudited=f"an integer format (pack-quantized) {_WHY}",
)
GPTQ = Format(
    name="gptq-awq",
    parts={
        Role.CODES: Part("qweight", _I32),
        Role.SCALES: Part("scales", FLOATS),
        Role.ZERO_POINT: _optional("qzeros", _ANY),
        Role.OTHER: _optional("g_idx", _ANY),
    },
    unaudited=f"an integer format (GPTQ or AWQ) {_WHY}",
)
BITSANDBYTES = Format(
    name="bitsandbytes",
    parts={
        Role.CODES: Part("weight", U8 | frozenset({"I8"})),
        Role.SCALES: Part("weight.absmax", frozenset({"F32", "U8"})),
        Role.OTHER: _optional("weight.quant_state.bitsandbytes__nf4", U8),
        Role.ZERO_POINT: _optional("weight.quant_state.bitsandbytes__fp4", U8),
    },
    unaudited=f"bitsandbytes {_WHY}",
)
BNB_INT8 = Format(
    name="bitsandbytes-int8",
    parts={
        Role.CODES: Part("weight", frozenset({"I8"})),
        Role.SCALES: Part("SCB", FLOATS),
        Role.OTHER: _optional("weight_format", U8),
    },
    unaudited=f"bitsandbytes {_WHY}",
)
# A tensor subclass by its parts; which one it is, and of what, stands in the header's metadata.
TORCHAO = Format(
    name="torchao",
    parts={
        Role.CODES: Part("_weight_qdata", _ANY | frozenset({"F8_E5M2", "F4"})),
        Role.SCALES: Part("_weight_scale", _ANY | frozenset({"F8_E8M0"})),
        Role.ZERO_POINT: _optional("_weight_zero_point", _ANY),
        Role.GLOBAL: _optional("_weight_per_tensor_scale", FLOATS),
    },
    unaudited=f"torchao {_WHY}",
    holds="",
)
