"""Weights to NVFP4 in bounded memory: what they share is measured first, then chunk after chunk is quantised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.formats.base import Role
from quant import metrics
from quant.errors import NumericError, RepairError
from quant.floats import Floats, Word, largest, widen
from quant.metrics import ErrorSums
from quant.nvfp4 import Method as Scales
from quant.quantised import Quantised
from repair.make.layouts import MODELOPT_3D, NVFP4, Layout, Target
from repair.make.recipe import Method
from repair.make.requantise_row import Requantised
from repair.make.requantise_weights import BLOCK, Weight
from repair.make.shard import Fill, Piece
from repair.restore_pieces import Reader, read_array
from repair.restore_recipes import Recipe as Way
from repair.shardheader import Entry
from repair.source_codes import WORDS, native

CHUNK = 1 << 21  # weights at a time: 4 MB of bf16
_MOST_ROWS = 1 << 22  # of a slab that is stored across: 16 inputs of all of them are in memory
_LINES = 8  # of a band that are turned together
_KEPT = 1 << 22  # weights of a set that are kept between the two passes


class Chunk(NamedTuple):
    """Weights ``w`` [rows, columns] of one slab, any float dtype; ``row`` and ``column``: where they begin."""

    slab: int
    row: int
    column: int
    w: Floats


@dataclass(frozen=True)
class Making:
    """How weights are quantised: ``inputs`` are the input scales to be stored, by module, none for weights only."""

    method: Method
    layout: Layout
    inputs: Mapping[str, np.float32]

    def target(self, weight: Weight) -> Target:
        """How the layout names and shapes the weight's tensors."""
        return MODELOPT_3D if weight.kept else NVFP4[self.layout]

    def entries(self, weight: Weight) -> Iterator[Entry]:
        """The tensors that it becomes."""
        target, rows, columns = self.target(weight), len(weight.rows), weight.columns
        shapes = [(rows, columns // 2), (rows, columns // BLOCK)]
        if weight.kept:
            shapes = [(len(weight.slabs), width, high) for high, width in shapes]  # type: ignore[misc]
        yield target.codes(weight.name, shapes[0])
        yield target.scales(weight.name, shapes[1])
        yield target.lone(Role.GLOBAL, weight.name)
        if weight.name in self.inputs:
            yield target.lone(Role.INPUT, weight.name)

    def pieces(self, reader: Reader, members: Sequence[Weight], home: str) -> Iterator[Piece]:
        """Everything for those members of a set that lie in the shard ``home``, and a row for each.

        RepairError, naming tensor and index, when a weight of the set is not finite.
        """
        keep = sum(weight.elements for weight in members) <= _KEPT
        kept: dict[str, list[Chunk]] = {}
        amax = np.float32(0)
        for weight in members:
            for chunk in chunks(weight, reader):
                amax = max(amax, _largest(weight, chunk))
                if keep and weight.ref.shard == home:
                    kept.setdefault(weight.name, []).append(chunk)
        words = {WORDS[weight.ref.dtype] for weight in members}
        way = self._way(words.pop() if len(words) == 1 else Word.FLOAT32)
        for weight in members:
            if weight.ref.shard == home:
                found = kept[weight.name] if keep else chunks(weight, reader)
                yield from self._weight(weight, found, way, amax, len(members))

    def _way(self, word: Word) -> Way:
        """As the layout's exporter rounds: llm-compressor divides in the weight's own precision.

        The sweep is not llm-compressor's, and wants a global scale as near to its candidates as can be.
        """
        if self.method is Method.MSE:
            return Way(self.method.value, Scales.SWEEP)
        return Way(self.method.value, word=word if self.layout is Layout.COMPRESSED_TENSORS else Word.FLOAT32)

    def _weight(
        self, weight: Weight, found: Iterator[Chunk] | list[Chunk], way: Way, amax: np.float32, members: int
    ) -> Iterator[Piece]:
        target = self.target(weight)
        scheme = target.format.scheme
        assert scheme is not None
        wide = way.global_scale(scheme, amax)
        assert wide is not None
        codes, scales = (
            _Sheet(weight, target.name(Role.CODES, weight.name), 2),
            _Sheet(weight, target.name(Role.SCALES, weight.name), BLOCK),
        )
        total = ErrorSums()
        for chunk in found:
            made = way.quantise(chunk.w, scheme, amax, wide)
            total += metrics.error(chunk.w, made)
            yield from codes.put(chunk, made.stored)
            yield from scales.put(chunk, _bytes(made))
        yield Fill(target.name(Role.GLOBAL, weight.name), 0, np.asarray(wide, "<f4").tobytes())
        if weight.name in self.inputs:
            yield Fill(target.name(Role.INPUT, weight.name), 0, np.asarray(self.inputs[weight.name], "<f4").tobytes())
        yield replace(
            row_of(weight, self.method, self.entries(weight), members),
            amax=float(amax),
            count=total.count,
            squared=total.squared,
            source=total.source,
        )


def row_of(weight: Weight, method: Method, entries: Iterable[Entry], members: int) -> Requantised:
    """What is known of a weight beforehand; its amax and errors are 0."""
    size = sum(entry.nbytes for entry in entries)
    return Requantised(
        weight.name, method.value, 0.0, members, 0, 0.0, 0.0, weight.elements * weight.ref.itemsize, size
    )


def _bytes(made: Quantised) -> NDArray[np.uint8]:
    return made.scales.astype(np.uint8, copy=False)


class _Sheet:
    """One new tensor of a weight: where the rows of its chunks go.  ``per``: weights that one byte stands for.

    Chunks come in order.  Those that are whole rows, or bands of a tensor that is stored across, lie in one piece;
    else a slab is gathered before it is given.
    """

    def __init__(self, weight: Weight, name: str, per: int) -> None:
        self._weight, self._name, self._per = weight, name, per
        self._gathered: NDArray[np.uint8] | None = None

    def put(self, chunk: Chunk, content: NDArray[np.uint8]) -> Iterator[Fill]:
        """``content``: uint8 [rows, columns / per]."""
        weight, high = self._weight, len(self._weight.rows)
        width, left = weight.columns // self._per, chunk.column // self._per
        base = (chunk.slab - weight.slabs.start) * high * width
        if weight.kept:
            yield Fill(self._name, base + left * high, _raw(content.T))
        elif not weight.across:
            yield Fill(self._name, base + chunk.row * width + left, _raw(content))
        else:
            if self._gathered is None:
                self._gathered = np.empty((high, width), np.uint8)
            self._gathered[:, left : left + content.shape[1]] = content
            if left + content.shape[1] == width:
                yield Fill(self._name, base, _raw(self._gathered))
                self._gathered = None


def _raw(content: NDArray[np.uint8]) -> memoryview:
    return np.ascontiguousarray(content).reshape(-1).data


def chunks(weight: Weight, reader: Reader) -> Iterator[Chunk]:
    """A weight in order, about CHUNK weights at a time, from consecutive bytes: rows, or bands across all rows.

    A row that is longer than that is cut, too.
    """
    return (part for slab in weight.slabs for part in (_bands if weight.across else _rows)(weight, slab, reader))


def _bands(weight: Weight, slab: int, reader: Reader) -> Iterator[Chunk]:
    item, high = weight.ref.itemsize, weight.height
    if high > _MOST_ROWS:
        raise RepairError(f"{weight.ref.shard}: {weight.ref.name}: {high} rows are more than can be turned at once")
    take = max(1, CHUNK // (high * BLOCK)) * BLOCK
    for first in range(0, weight.columns, take):
        lines = min(take, weight.columns - first)
        raw = read_array(reader, weight.ref, (slab * weight.columns + first) * high * item, lines * high * item)
        band = native(raw, weight.ref).reshape(lines, high)[:, weight.rows.start : weight.rows.stop : weight.rows.step]
        yield Chunk(slab, 0, first, _turned(band))


def _turned(band: Floats) -> Floats:
    """[columns, rows] as contiguous [rows, columns]; a few lines at a time, which a cache holds."""
    out = np.empty(band.shape[::-1], band.dtype)
    for first in range(0, len(band), _LINES):
        out[:, first : first + _LINES] = band[first : first + _LINES].T
    return out


def _rows(weight: Weight, slab: int, reader: Reader) -> Iterator[Chunk]:
    item, wide, rows = weight.ref.itemsize, weight.columns, weight.rows
    take, across = max(1, CHUNK // wide), min(wide, max(1, CHUNK // BLOCK) * BLOCK)
    for first in range(0, len(rows), take):
        some = rows[first : first + take]
        for column in range(0, wide, across):
            many = min(across, wide - column)
            start = (slab * weight.height + some[0]) * wide + column
            span = (some[-1] - some[0]) * wide + many
            raw = native(read_array(reader, weight.ref, start * item, span * item), weight.ref)
            yield Chunk(slab, first, column, np.ascontiguousarray(raw.reshape(-1, many)[:: some.step]))


def _largest(weight: Weight, chunk: Chunk) -> np.float32:
    try:
        return largest(chunk.w)
    except NumericError:
        at = int(np.argmin(np.isfinite(_wide(chunk.w))))
        row, column = divmod(at, chunk.w.shape[1])
        value = float(_wide(chunk.w)[at])
        row, column = weight.rows[chunk.row + row], chunk.column + column
        index = [column, row] if weight.across else [row, column]
        if len(weight.ref.shape) == 3:
            index.insert(0, chunk.slab)
        raise RepairError(
            f"{weight.ref.shard}: {weight.ref.name}: the weight at {index} is {value}: no code stands for it"
        ) from None


def _wide(w: Floats) -> NDArray[np.float32]:
    return widen(w).reshape(-1)
