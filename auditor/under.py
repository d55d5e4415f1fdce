"""FP8 weights under a scale: whether they are all zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.context import Context
from auditor.formats.base import block_shape
from auditor.layer import QuantizedLayer
from auditor.probes import Hits

_STEP = 1 << 20


def live_under(layer: QuantizedLayer, zeros: Hits, ctx: Context) -> bool:
    """Whether any code under one of these (first few) scales is not +0 or -0; True where shapes do not tell."""
    for flat in zeros.first:
        ranges = _ranges(layer, flat)
        if ranges is None:
            return True
        for start, length in ranges:
            for at in range(start, start + length, _STEP):
                codes = np.frombuffer(ctx.read(layer.codes, at, min(_STEP, start + length - at)), np.uint8)
                if np.any(codes & 0x7F):
                    return True
    return False


def _ranges(layer: QuantizedLayer, flat: int) -> Iterator[tuple[int, int]] | None:
    """(offset, length) of the bytes under the ``flat``-th scale; codes are one byte each."""
    codes, scales = layer.codes, layer.scales
    if codes.itemsize != 1 or not codes.shape:
        return None
    if scales.is_scalar:
        return iter([(0, codes.nbytes)])
    columns = codes.shape[-1]
    if scales.size * columns == codes.size:  # one scale per output row
        return iter([(flat * columns, columns)])
    block = block_shape(codes.shape, scales.shape)
    if block is None or len(codes.shape) != 2:
        return None
    per_row = -(-columns // block[1])
    row, column = flat // per_row * block[0], flat % per_row * block[1]
    width = min(block[1], columns - column)
    rows = range(row, min(row + block[0], codes.shape[0]))
    return ((r * columns + column, width) for r in rows)
