"""Blocks picked by their scale, as they will be after what is planned; and the edits that write to them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from auditor import blocks
from auditor.blocks import Bytes, Indices, Pick, Picked
from auditor.layer import Geometry, QuantizedLayer
from repair.fixes.desk import Desk
from repair.fixes.proposal import Edit


def pick(desk: Desk, layer: QuantizedLayer, geometry: Geometry, wanted: Pick) -> Iterator[Picked]:
    """Every block whose scale byte is wanted, as it will be after what is planned, in chunks."""
    return blocks.pick(desk.read, layer, geometry, wanted)


def runs(flat: Indices, width: int) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of consecutive indices, none of which crosses a multiple of ``width``."""
    if not flat.size:
        return
    breaks = np.flatnonzero((np.diff(flat) != 1) | (flat[1:] % width == 0)) + 1
    for part in np.split(flat, breaks):
        yield int(part[0]), int(part.size)


def zero_codes(layer: QuantizedLayer, geometry: Geometry, flat: Indices) -> Iterator[Edit]:
    """Every code of these blocks becomes +0."""
    unit, inner = geometry.unit, geometry.inner
    for first, count in runs(flat, inner if inner > 1 else 1 << 62):
        if inner == 1:
            yield Edit(layer.codes, first * unit, bytes(count * unit))
            continue
        row, column = divmod(first, inner)
        for line in range(unit):
            yield Edit(layer.codes, (row * unit + line) * inner + column, bytes(count))


def set_scales(layer: QuantizedLayer, flat: Indices, byte: int) -> Iterator[Edit]:
    """The scales of these blocks become ``byte``."""
    for first, count in runs(flat, 1 << 62):
        yield Edit(layer.scales, first, bytes([byte]) * count)


def is_nan(scales: Bytes) -> NDArray[np.bool_]:
    """Where an E4M3 byte is NaN."""
    return np.asarray((scales & 0x7F) == 0x7F)


__all__ = ["Bytes", "Indices", "Pick", "Picked", "is_nan", "pick", "runs", "set_scales", "zero_codes"]
