"""Suspicious block scales seen together with the codes under them.

A scan of the scales reads no codes.  Where a scale is NaN, zero, negative or saturated, what it means depends on the
codes of its block: they are read for that layer then, in chunks, once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.finding import PLACES_KEPT
from auditor.layer import Geometry, QuantizedLayer
from auditor.probes import Hits
from auditor.tensorref import TensorRef
from quant.codes import E4M3, FloatCode

Bytes = NDArray[np.uint8]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Pick = Callable[[Bytes], Mask]
Read = Callable[[TensorRef, int, int], bytes]
"""(tensor, first byte in it, length) -> those bytes, as they are stored or as they will be."""

_ROWS = 1 << 16  # blocks looked at together: 64 KiB of scales, 1 MiB of codes at most
_SPARSE = 256  # up to this many picked blocks in a chunk are fetched one by one


class Kind(enum.Enum):
    """What a block scale is."""

    NAN = "nan"
    ZERO = "zero"
    NEGATIVE = "negative"  # E4M3 only
    SATURATED = "saturated"  # E4M3 0x7E


class Under(enum.Enum):
    """What the codes of a block are."""

    SEVENS = "sevens"  # every byte 0x77: made by dividing by NaN or zero
    ZEROS = "zeros"  # every code +0 or -0
    OTHER = "other"


class Picked(NamedTuple):
    """Some blocks of a layer: flat indices into the scales, their scale bytes, their packed codes [n, unit]."""

    flat: Indices
    scales: Bytes
    codes: Bytes

    def where(self, mask: Mask) -> Picked:
        """Those of the blocks that a mask names."""
        return Picked(self.flat[mask], self.scales[mask], self.codes[mask])

    @property
    def sevens(self) -> Mask:
        """Blocks whose packed bytes are all 0x77: made by dividing by NaN or zero."""
        return np.asarray((self.codes == 0x77).all(axis=1))

    @property
    def zeros(self) -> Mask:
        """Blocks whose codes are all +0 or -0."""
        return np.asarray(((self.codes & 0x77) == 0).all(axis=1))


@dataclass(frozen=True)
class BlockReport:
    """Blocks by the kind of their scale and of their codes, as flat indices into the scale tensor."""

    found: Mapping[tuple[Kind, Under], Hits] = field(default_factory=dict)

    def hits(self, kind: Kind, *under: Under) -> Hits:
        """Blocks whose scale is of this kind, over these codes (any, when none is named)."""
        chosen = [self.found.get((kind, u), Hits()) for u in under or Under]
        first = sorted(place for h in chosen for place in h.first)
        return Hits(sum(h.count for h in chosen), tuple(first[:PLACES_KEPT]))


def classify(read: Read, layer: QuantizedLayer, geometry: Geometry, kinds: frozenset[Kind]) -> BlockReport:
    """Look at every scale of these kinds in a layer of packed FP4 codes."""
    masks = [(kind, _mask(kind, layer.format.scale)) for kind in kinds]
    found: dict[tuple[Kind, Under], Hits] = {}
    for blocks in pick(read, layer, geometry, lambda s: np.logical_or.reduce([mask(s) for _, mask in masks])):
        sevens, zeros = blocks.sevens, blocks.zeros
        for kind, mask in masks:
            here = mask(blocks.scales)
            for under, other in ((Under.SEVENS, sevens), (Under.ZEROS, zeros), (Under.OTHER, ~(sevens | zeros))):
                flat = blocks.flat[here & other]
                hits = Hits(flat.size, tuple(map(int, flat[:PLACES_KEPT])))
                found[kind, under] = found.get((kind, under), Hits()).plus(hits)
    return BlockReport(found)


def _mask(kind: Kind, code: FloatCode | None) -> Pick:
    if kind is Kind.ZERO:
        return lambda raw: raw == 0
    if kind is Kind.NAN:
        return (lambda raw: (raw & 0x7F) == 0x7F) if code is E4M3 else (lambda raw: raw == 255)
    if code is not E4M3:
        return lambda raw: np.zeros(raw.size, np.bool_)
    return (lambda raw: raw == 0x7E) if kind is Kind.SATURATED else (lambda raw: (raw >= 0x80) & (raw != 0xFF))


def pick(read: Read, layer: QuantizedLayer, geometry: Geometry, wanted: Pick) -> Iterator[Picked]:
    """Every block whose scale byte is wanted, with the codes under it, in chunks that ascend."""
    step = max(1, _ROWS // geometry.inner)
    for first in range(0, geometry.rows, step):
        count = min(step, geometry.rows - first) * geometry.inner
        base = first * geometry.inner
        scales = np.frombuffer(read(layer.scales, base, count), np.uint8)
        flat = np.flatnonzero(wanted(scales))
        if flat.size:
            yield Picked(flat + base, scales[flat], _codes(read, layer.codes, geometry, flat + base))


def _codes(read: Read, codes: TensorRef, geometry: Geometry, flat: Indices) -> Bytes:
    """Packed codes uint8 [n, unit] of blocks by flat index, ascending, that lie near each other."""
    unit, inner = geometry.unit, geometry.inner
    if inner == 1:
        if flat.size <= _SPARSE:
            raw = b"".join(read(codes, int(i) * unit, unit) for i in flat)
            return np.frombuffer(raw, np.uint8).reshape(-1, unit)
        low, high = int(flat[0]), int(flat[-1]) + 1
        whole = np.frombuffer(read(codes, low * unit, (high - low) * unit), np.uint8)
        return whole.reshape(-1, unit)[flat - low]
    out = np.empty((flat.size, unit), np.uint8)
    rows = flat // inner
    for row in np.unique(rows):
        here = rows == row
        columns = flat[here] % inner
        low, high = int(columns[0]), int(columns[-1]) + 1
        for line in range(unit):
            side = np.frombuffer(read(codes, (int(row) * unit + line) * inner + low, high - low), np.uint8)
            out[here, line] = side[columns - low]
    return out
