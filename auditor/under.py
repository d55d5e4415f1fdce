"""What lies under the zero scales of an FP8 layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.context import Context
from auditor.formats.base import Role, block_shape
from auditor.layer import QuantizedLayer
from auditor.probes import Hits, decode_floats

_STEP = 1 << 20


def live_zeros(layer: QuantizedLayer, ctx: Context) -> Hits:
    """The float scales that are zero over a code other than +0 and -0.

    Where the shapes do not tell which codes lie under a scale, every zero counts.
    """
    scales, count = layer.scales, 0
    first: list[int] = []
    for at in range(0, scales.nbytes, _STEP):
        raw = ctx.read(scales, at, min(_STEP, scales.nbytes - at))
        for flat in np.flatnonzero(decode_floats(raw, scales.dtype) == 0) + at // scales.itemsize:
            if _live(layer, int(flat), ctx):
                count += 1
                first += [int(flat)] * (len(first) < 8)
    return Hits(count, tuple(first))


def _live(layer: QuantizedLayer, flat: int, ctx: Context) -> bool:
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
    if layer.format.parts[Role.SCALES].scalar and scales.size == codes.shape[0]:  # one scale per expert
        return iter([(flat * (codes.nbytes // scales.size), codes.nbytes // scales.size)])
    columns = codes.shape[-1]
    if scales.size * columns == codes.size and scales.shape[:1] == codes.shape[:1]:  # one scale per output row
        return iter([(flat * columns, columns)])
    block = block_shape(codes.shape, scales.shape)
    if block is None or len(codes.shape) != 2:
        return None
    per_row = -(-columns // block[1])
    row, column = flat // per_row * block[0], flat % per_row * block[1]
    width = min(block[1], columns - column)
    rows = range(row, min(row + block[0], codes.shape[0]))
    return ((r * columns + column, width) for r in rows)
