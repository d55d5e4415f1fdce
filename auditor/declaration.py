"""What a configuration can declare, as types: algorithms, their families, exclusions, and what could not be read."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Family(enum.Enum):
    """What a declared algorithm leaves on disk; one value per layout that loaders tell apart."""

    NVFP4 = "NVFP4"  # E2M1 codes, E4M3 scales per 16, one global scale
    NVFP4_32 = "NVFP4 in blocks of 32"  # W4A8_NVFP4_FP8
    MXFP4 = "MXFP4"
    MXFP8 = "MXFP8"
    FP8 = "FP8 per tensor"
    FP8_CHANNEL = "FP8 per channel"
    FP8_BLOCK = "FP8 in blocks"
    INTEGER = "an integer format"
    PLAIN = "unquantised"
    UNKNOWN = "unknown"


class Activation(enum.Enum):
    """How the inputs of a layer are declared to be quantised."""

    STATIC = "static"  # a scale is stored
    DYNAMIC = "dynamic"  # scales are computed while serving
    NONE = "none"  # inputs stay as they are
    UNKNOWN = "unknown"


class Algorithm(NamedTuple):
    """One declared way of quantising layers.  ``block``: declared weight block, ``group_size``: along the inputs."""

    name: str
    family: Family
    activation: Activation = Activation.UNKNOWN
    group_size: int | None = None
    block: tuple[int, int] | None = None


class Group(NamedTuple):
    """Layers that share an algorithm, named by patterns or by class (Linear)."""

    name: str
    algorithm: Algorithm
    targets: tuple[str, ...]


class Problem(NamedTuple):
    """Something in a configuration file that loaders cannot use.  ``fatal``: a common loader refuses the file."""

    file: str
    key: str
    message: str
    fatal: bool = True


_STATIC, _DYNAMIC, _NONE = Activation.STATIC, Activation.DYNAMIC, Activation.NONE
# quant_algo of modelopt, in upper case.
_MODELOPT: dict[str, tuple[Family, Activation]] = {
    "NVFP4": (Family.NVFP4, _STATIC),
    "NVFP4_STATIC": (Family.NVFP4, _STATIC),
    "NVFP4_AWQ": (Family.NVFP4, _STATIC),
    "NVFP4_SVD": (Family.NVFP4, _STATIC),
    "NVFP4_SVDQUANT": (Family.NVFP4, _STATIC),
    "W4A4_NVFP4": (Family.NVFP4, _STATIC),
    "W4A16_NVFP4": (Family.NVFP4, _NONE),
    "NVFP4_W4A16": (Family.NVFP4, _NONE),
    "W4A8_NVFP4_FP8": (Family.NVFP4_32, _STATIC),
    "MXFP4": (Family.MXFP4, _DYNAMIC),
    "W4A16_MXFP4": (Family.MXFP4, _NONE),
    "W4A8_MXFP4_FP8": (Family.MXFP4, Activation.UNKNOWN),
    "W4A8_MXFP4_MXFP8": (Family.MXFP4, _DYNAMIC),
    "MXFP8": (Family.MXFP8, _DYNAMIC),
    "FP8": (Family.FP8, _STATIC),
    "FP8_PER_TENSOR": (Family.FP8, _STATIC),
    "FP8_PER_CHANNEL_PER_TOKEN": (Family.FP8_CHANNEL, _DYNAMIC),
    "FP8_PC_PT": (Family.FP8_CHANNEL, _DYNAMIC),
    "FP8_PB_WO": (Family.FP8_BLOCK, _DYNAMIC),
    "FP8_PB_REAL": (Family.FP8_BLOCK, _DYNAMIC),
    "FP8_BLOCK_SCALES": (Family.FP8_BLOCK, _DYNAMIC),
    "FP8_BLOCK": (Family.FP8_BLOCK, _DYNAMIC),
}
_INTEGERS = ("INT4", "INT8", "W4A16", "W4A8_AWQ", "W8A16", "W8A8", "AWQ", "W4A8_GPTQ", "W2A16", "W4A4_INT", "UINT4")
MIXED = "MIXED_PRECISION"


def named_algorithm(name: str, group_size: int | None = None) -> Algorithm:
    """The algorithm that a ``quant_algo`` names, in whatever case; its family is UNKNOWN when no one knows it."""
    upper = name.strip().upper().replace("-", "_")
    if upper in ("", "NONE", "NO_QUANT"):
        return Algorithm(name or "none", Family.PLAIN, _NONE)
    if upper in _MODELOPT:
        family, activation = _MODELOPT[upper]
        block = (group_size or 128, group_size or 128) if family is Family.FP8_BLOCK else None
        return Algorithm(upper, family, activation, group_size, block)
    if upper.startswith(_INTEGERS):
        return Algorithm(upper, Family.INTEGER, Activation.UNKNOWN, group_size)
    return Algorithm(upper, Family.UNKNOWN, Activation.UNKNOWN, group_size)


def with_activation(algorithm: Algorithm, activation: Activation) -> Algorithm:
    """The same algorithm, its inputs quantised in another way."""
    return algorithm._replace(activation=activation)
