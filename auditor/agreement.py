"""Whether what a layer's tensors are agrees with the algorithm that is declared for it."""

from __future__ import annotations

from auditor.architecture import coarse
from auditor.declared import Algorithm, Declared, Family
from auditor.finding import Severity
from auditor.formats.base import block_shape, ceil_div
from auditor.layer import QuantizedLayer

_HOLDS = {
    Family.NVFP4: "nvfp4",
    Family.NVFP4_32: "nvfp4-32",
    Family.MXFP4: "mxfp4",
    Family.MXFP8: "mxfp8",
    Family.FP8: "fp8",
    Family.FP8_CHANNEL: "fp8",
    Family.FP8_BLOCK: "fp8",
    Family.INTEGER: "integer",
}


def contradiction(layer: QuantizedLayer, algorithm: Algorithm, declared: Declared) -> tuple[str, Severity] | None:
    """(what is stored, severity) when it is not what the algorithm leaves on disk, else None."""
    holds, wanted = coarse(layer.format), _HOLDS.get(algorithm.family)
    if wanted is None or not holds:
        return None
    if holds != wanted:
        if (wanted, holds) == ("nvfp4", "nvfp4-32"):
            return None  # half of the scales are missing: FMT105
        return f"stored as {layer.format.name_for(declared.method)}", Severity.ERROR
    if holds == "fp8":
        return _fp8(layer, algorithm, declared)
    size = {"nvfp4": 16, "nvfp4-32": 32, "mxfp4": 32, "mxfp8": 32}.get(holds)
    if size and algorithm.group_size not in (None, size):
        return f"stored with one scale per {size} weights, not {algorithm.group_size}", Severity.ERROR
    return None


def _fp8(layer: QuantizedLayer, algorithm: Algorithm, declared: Declared) -> tuple[str, Severity] | None:
    rows, columns = layer.dims()
    if layer.scales.is_scalar:
        stored, fits = "one scale per tensor", algorithm.family is Family.FP8
        if algorithm.family is Family.FP8_CHANNEL:
            fits = rows == 1
        elif algorithm.family is Family.FP8_BLOCK:
            height, width = algorithm.block or (128, 128)
            fits = rows <= height and columns <= width
    elif layer.scales.shape == layer.codes.shape[:1] and len(layer.codes.shape) == 3:
        stored, fits = "one scale per expert", algorithm.family is Family.FP8
    elif layer.format.block == (1, 0):
        stored, fits = "one scale per channel", algorithm.family is Family.FP8_CHANNEL or declared.method == "fp8"
    else:
        stored, fits = "one scale per block", algorithm.family is Family.FP8_BLOCK
        if fits and not _fits_block(layer, algorithm, declared):
            return f"stored with scales {list(layer.scales.shape)} for {list(layer.codes.shape)}", Severity.ERROR
    return None if fits else (f"stored with {stored}", Severity.ERROR)


def _fits_block(layer: QuantizedLayer, algorithm: Algorithm, declared: Declared) -> bool:
    """Whether the scales have the shape that the declared block gives; True where none is declared in so many words.

    Shapes that fit no block at all are another rule's matter.
    """
    codes, scales, block = layer.codes.shape, layer.scales.shape, algorithm.block
    if block is None or declared.method == "modelopt" or len(codes) < 2 or block_shape(codes, scales) is None:
        return True
    return scales == (*codes[:-2], ceil_div(codes[-2], block[0]), ceil_div(codes[-1], block[1]))
