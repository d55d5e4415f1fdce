"""Whether the shapes of codes and scales agree, and the known ways in which they do not."""

from __future__ import annotations

from auditor.declared import Declared
from auditor.formats.base import Role, Shape, block_shape, ceil_div, fits_block
from auditor.layer import QuantizedLayer


def weight_block(layer: QuantizedLayer, declared: Declared) -> tuple[int, int] | None:
    """(rows, columns) of weights under one scale of block FP8; None where no block explains the shapes.

    The declared block where the shapes agree with it, else what they show alone.
    """
    algorithm = declared.algo_for(layer.name)
    block = (algorithm.block if algorithm else None) or declared.weight_block_size
    if block is not None and fits_block(layer.codes.shape, layer.scales.shape, block):
        return block
    return block_shape(layer.codes.shape, layer.scales.shape)


def expected_scales(layer: QuantizedLayer, declared: Declared) -> tuple[Shape, ...] | None:
    """The shapes of scales that fit the codes, the usual one first; None where any shape may be right."""
    codes, fmt = layer.codes.shape, layer.format
    if fmt.is_fp4():
        return _fp4(layer)
    if not codes or len(codes) < 2 or fmt.parts[Role.SCALES].scalar or fmt.block == (1, 0):
        return None
    rows, columns = fmt.block
    if rows == 0:
        return None
    if rows == 1:
        return ((*codes[:-1], ceil_div(codes[-1], columns)),)
    if weight_block(layer, declared) is not None:
        return (layer.scales.shape,)
    return ((*codes[:-2], ceil_div(codes[-2], rows), ceil_div(codes[-1], columns)),)


def _fp4(layer: QuantizedLayer) -> tuple[Shape, ...] | None:
    codes, unit = layer.codes.shape, layer.format.block[1] // 2
    if layer.geometry() is not None:
        return (layer.scales.shape,)
    if layer.codes.dtype == "F4":
        unit *= 2
    axis = layer.format.axis
    if len(codes) < -axis:
        return ((1,),)
    if len(codes) == len(layer.scales.shape) + 1 and codes[-1] == unit:
        return (codes[:-1],)
    shape = list(codes)
    shape[axis] = ceil_div(codes[axis], unit)
    return (tuple(shape),)


def is_half_by_fault(layer: QuantizedLayer, declared: Declared) -> bool:
    """Whether an NVFP4 layer has one scale per 32 weights though nothing declares W4A8's blocks of 32."""
    if layer.format.name != "modelopt-w4a8":
        return False
    return not declared.has_blocks_of_32(layer.name)


def is_transposed(layer: QuantizedLayer) -> bool:
    """Whether 2-D codes [K/2, N] fit scales [N, K/block] only when transposed."""
    if layer.geometry() is not None or not layer.format.is_fp4():
        return False
    codes, scales, unit = layer.codes.shape, layer.scales.shape, layer.format.block[1] // 2
    if len(codes) != 2 or len(scales) != 2:
        return False
    return codes == (scales[1] * unit, scales[0])


def is_swizzled(layer: QuantizedLayer) -> bool:
    """Whether the scales have the shape of the codes padded to 128 rows and 4 scale columns."""
    if layer.geometry() is not None or not layer.format.is_fp4() or layer.format.axis != -1:
        return False
    codes, scales, unit = layer.codes.shape, layer.scales.shape, layer.format.block[1] // 2
    if len(codes) < 2:
        return False
    rows, columns = codes[-2], ceil_div(codes[-1], unit)
    padded = (ceil_div(rows, 128) * 128, ceil_div(columns, 4) * 4)
    flat = (*codes[:-2], padded[0] * padded[1])
    return scales in ((*codes[:-2], *padded), flat)


def misfit(layer: QuantizedLayer, declared: Declared) -> bool:
    """Whether the scales do not fit the codes: what the block size would be is then unknown."""
    wanted = expected_scales(layer, declared)
    return is_half_by_fault(layer, declared) or (wanted is not None and layer.scales.shape not in wanted)
