"""Blocks: elements that share a scale.  Their amax, and a scale spread over its block.

A block shape names the last axes: ``(16,)`` is 16 elements along the last axis, ``(128, 128)`` a tile of the
last two.  ``0`` means the whole axis.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quant.errors import NumericError

Block = tuple[int, ...]


def grid(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Shape of the scales of a tensor of ``shape``: a partial block at an edge counts as one.

    Raises NumericError when the tensor has fewer axes than the block.
    """
    if len(shape) < len(block):
        raise NumericError(f"blocks of {block} need {len(block)} axes, the tensor has shape {shape}")
    lead = len(shape) - len(block)
    return shape[:lead] + tuple(1 if b == 0 else math.ceil(n / b) for n, b in zip(shape[lead:], block, strict=True))


def require_whole(shape: tuple[int, ...], block: int) -> None:
    """Nothing; raises NumericError when the last axis is not a whole number of blocks (ragged K)."""
    if not shape or shape[-1] % block or shape[-1] == 0:
        k = shape[-1] if shape else 0
        raise NumericError(f"K = {k} is no multiple of the block size {block}: shape {shape} cannot be cut into blocks")


def amax(w: NDArray[np.float32], block: Block) -> NDArray[np.float32]:
    """The largest magnitude in each block, float32, shape ``grid(w.shape, block)``; edges may be partial.

    NaN in a block gives NaN.  A whole axis that is empty gives zeros; cut into blocks it has none.
    """
    out = np.abs(w)
    for i, size in enumerate(reversed(block)):
        axis = w.ndim - 1 - i
        n = w.shape[axis]
        if size == 0:
            out = np.max(out, axis=axis, keepdims=True, initial=0)
        elif n:
            out = np.maximum.reduceat(out, np.arange(0, n, size), axis=axis)
    return np.asarray(out, np.float32).reshape(grid(w.shape, block))


def require_fit(scale: tuple[int, ...], shape: tuple[int, ...], block: Block) -> None:
    """Nothing; raises NumericError when scales of shape ``scale`` do not belong to a tensor of ``shape``."""
    if scale != grid(shape, block):
        raise NumericError(f"scales {scale} do not fit a tensor {shape} with blocks {block}: {grid(shape, block)}")


def spread(scale: NDArray[np.float32], shape: tuple[int, ...], block: Block) -> NDArray[np.float32]:
    """``scale`` repeated over its blocks: a float32 array of ``shape`` (edges cut).

    ``scale`` has the shape ``grid(shape, block)``.  Raises NumericError when the shapes do not fit.
    """
    require_fit(scale.shape, shape, block)
    out = scale
    for i, size in enumerate(reversed(block)):
        axis = len(shape) - 1 - i
        n = shape[axis]
        index = np.zeros(n, np.intp) if size == 0 else np.arange(n) // size
        out = np.take(out, index, axis=axis)
    return out


def scale_rows(scale: tuple[int, ...], shape: tuple[int, ...], block: Block) -> NDArray[np.intp]:
    """The row of scales (shape ``scale``) of each row of a weight (``shape``); rows count over all leading axes."""
    index = np.arange(np.prod(scale[:-1], dtype=np.intp)).reshape(scale[:-1])
    if len(block) == 2:
        rows = np.arange(shape[-2])
        index = np.take(index, rows // block[0] if block[0] else rows * 0, axis=-1)
    return np.ascontiguousarray(index, np.intp).reshape(-1)
