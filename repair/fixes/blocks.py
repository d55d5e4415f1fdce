"""Blocks picked by their scale, with the codes under them; and the edits that write to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.layer import Geometry, QuantizedLayer
from repair.fixes.desk import Desk
from repair.fixes.proposal import Edit

Bytes = NDArray[np.uint8]
Indices = NDArray[np.intp]
Pick = Callable[[Bytes], NDArray[np.bool_]]

_ROWS = 1 << 16  # blocks looked at together
_SPARSE = 256  # up to this many picked blocks in a chunk are fetched one by one


class Picked(NamedTuple):
    """Some blocks of a layer: flat indices into the scales, their scale bytes, their packed codes [n, unit]."""

    flat: Indices
    scales: Bytes
    codes: Bytes

    def where(self, mask: NDArray[np.bool_]) -> Picked:
        """Those of the blocks that a mask names."""
        return Picked(self.flat[mask], self.scales[mask], self.codes[mask])

    @property
    def sevens(self) -> NDArray[np.bool_]:
        """Blocks whose packed bytes are all 0x77: made by dividing by NaN or zero."""
        return np.asarray((self.codes == 0x77).all(axis=1))

    @property
    def zeros(self) -> NDArray[np.bool_]:
        """Blocks whose codes are all +0 or -0."""
        return np.asarray(((self.codes & 0x77) == 0).all(axis=1))


def pick(desk: Desk, layer: QuantizedLayer, geometry: Geometry, wanted: Pick) -> Iterator[Picked]:
    """Every block whose scale byte is wanted, as it will be after what is planned, in chunks."""
    step = max(1, _ROWS // geometry.inner)
    for first in range(0, geometry.rows, step):
        count = min(step, geometry.rows - first) * geometry.inner
        base = first * geometry.inner
        scales = np.frombuffer(desk.read(layer.scales, base, count), np.uint8)
        flat = np.flatnonzero(wanted(scales))
        if flat.size:
            yield Picked(flat + base, scales[flat], codes_of(desk, layer, geometry, flat + base))


def codes_of(desk: Desk, layer: QuantizedLayer, geometry: Geometry, flat: Indices) -> Bytes:
    """Packed codes uint8 [n, unit] of blocks by flat index, ascending, that lie near each other."""
    unit, inner = geometry.unit, geometry.inner
    if inner == 1:
        if flat.size <= _SPARSE:
            raw = b"".join(desk.read(layer.codes, int(i) * unit, unit) for i in flat)
            return np.frombuffer(raw, np.uint8).reshape(-1, unit)
        low, high = int(flat[0]), int(flat[-1]) + 1
        whole = np.frombuffer(desk.read(layer.codes, low * unit, (high - low) * unit), np.uint8)
        return whole.reshape(-1, unit)[flat - low]
    out = np.empty((flat.size, unit), np.uint8)
    rows = flat // inner
    for row in np.unique(rows):
        here = rows == row
        columns = flat[here] % inner
        low, high = int(columns[0]), int(columns[-1]) + 1
        for line in range(unit):
            at = (int(row) * unit + line) * inner + low
            side = np.frombuffer(desk.read(layer.codes, at, high - low), np.uint8)
            out[here, line] = side[columns - low]
    return out


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
