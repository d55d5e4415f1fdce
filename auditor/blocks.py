"""Suspicious block scales seen together with the codes under them.

A scan of the scales reads no codes.  Where a scale is NaN, zero, negative or saturated, what it means depends on the
codes of its block: they are read for that layer then, in chunks, once.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from auditor.layer import Geometry, QuantizedLayer
from auditor.probes import Hits, hits
from auditor.source import ByteSource
from quant.codes import E4M3, FloatCode

_ROWS = 1 << 16  # blocks looked at together: 64 KiB of scales, 1 MiB of codes at most
_SPARSE = 256  # up to this many suspicious blocks in a chunk are fetched one by one


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


@dataclass
class BlockReport:
    """Blocks by the kind of their scale and of their codes, as flat indices into the scale tensor."""

    found: dict[tuple[Kind, Under], Hits] = field(default_factory=dict)
    bytes_read: int = 0

    def hits(self, kind: Kind, *under: Under) -> Hits:
        """Blocks whose scale is of this kind, over these codes (any, when none is named)."""
        chosen = [self.found.get((kind, u), Hits()) for u in under or Under]
        first = sorted(place for h in chosen for place in h.first)
        return Hits(sum(h.count for h in chosen), tuple(first[:8]))


def classify(
    source: ByteSource, scales_source: ByteSource, layer: QuantizedLayer, geometry: Geometry, kinds: frozenset[Kind]
) -> BlockReport:
    """Look at every scale of these kinds in a layer of packed FP4 codes.

    ``source`` holds the codes, ``scales_source`` the scales (most often the same file).
    """
    report = BlockReport()
    step = max(1, _ROWS // geometry.inner)
    for first in range(0, geometry.rows, step):
        rows = min(step, geometry.rows - first)
        base = first * geometry.inner
        raw = _read(scales_source, layer.scales.start + base, rows * geometry.inner)
        report.bytes_read += raw.size
        masks = {kind: _mask(kind, raw, layer.format.scale) for kind in sorted(kinds, key=str)}
        suspicious = np.flatnonzero(np.logical_or.reduce(list(masks.values())))
        if not suspicious.size:
            continue
        sevens, zeros = np.zeros(raw.size, np.bool_), np.zeros(raw.size, np.bool_)
        for where, codes in _codes(source, layer, geometry, first, rows, suspicious, report):
            sevens[where] = (codes == 0x77).all(axis=1)
            zeros[where] = ((codes & 0x77) == 0).all(axis=1)
        for kind, mask in masks.items():
            for under, other in ((Under.SEVENS, sevens), (Under.ZEROS, zeros), (Under.OTHER, ~(sevens | zeros))):
                known = report.found.get((kind, under), Hits())
                report.found[kind, under] = known.plus(hits(mask & other, base))
    return report


def _mask(kind: Kind, raw: NDArray[np.uint8], code: FloatCode | None) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.zeros(raw.size, np.bool_)
    if kind is Kind.ZERO:
        mask = raw == 0
    elif kind is Kind.NAN:
        mask = (raw & 0x7F) == 0x7F if code is E4M3 else raw == 255
    elif code is E4M3:
        mask = raw == 0x7E if kind is Kind.SATURATED else (raw >= 0x80) & (raw != 0xFF)
    return mask


def _codes(
    source: ByteSource,
    layer: QuantizedLayer,
    geometry: Geometry,
    first: int,
    rows: int,
    suspicious: NDArray[np.intp],
    report: BlockReport,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """(positions in the chunk, codes uint8 [positions, unit]) covering every suspicious block."""
    unit, inner = geometry.unit, geometry.inner
    start = layer.codes.start
    if inner == 1 and suspicious.size <= _SPARSE:
        for place in suspicious:
            codes = _read(source, start + (first + int(place)) * unit, unit)
            report.bytes_read += unit
            yield np.array([place]), codes.reshape(1, unit)
        return
    if inner == 1:
        low, high = int(suspicious[0]), int(suspicious[-1]) + 1
        codes = _read(source, start + (first + low) * unit, (high - low) * unit)
        report.bytes_read += codes.size
        yield suspicious, codes.reshape(-1, unit)[suspicious - low]
        return
    for row in np.unique(suspicious // inner):
        columns = suspicious[suspicious // inner == row] % inner
        low, high = int(columns[0]), int(columns[-1]) + 1
        block = np.empty((unit, high - low), np.uint8)
        for line in range(unit):
            at = start + ((first + int(row)) * unit + line) * inner + low
            source.read_into(at, block[line].data)
        report.bytes_read += block.size
        yield columns + row * inner, np.ascontiguousarray(block[:, columns - low].T)


def _read(source: ByteSource, offset: int, length: int) -> NDArray[np.uint8]:
    raw = np.empty(length, np.uint8)
    source.read_into(offset, raw.data)
    return raw
