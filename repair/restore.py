"""New bytes for damaged blocks and layers, made from the unquantised weights as the exporter would have made them.

Nothing is written here: every function yields pieces (tensor, offset inside it, new bytes), in order and streamed, so
that a layer of any size needs the memory of one chunk (of one expert where a fused tensor is stored transposed).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from quant.errors import NumericError, RepairError
from quant.floats import Floats, largest
from quant.metrics import ErrorSums, error
from quant.quantised import Quantised
from quant.scheme import GlobalScale, Scheme
from repair.restore_habits import Habits, held
from repair.restore_pieces import Piece
from repair.restore_recipes import Recipe
from repair.source import CHUNK, Chunk, Source
from repair.source_codes import (
    code_lines,
    float_bytes,
    floats,
    global_of,
    grid,
    scale_lines,
    scheme,
    step_rows,
    stored_scales,
    write_lines,
)  # fmt: skip

_GAP = 8  # rows read though no block in them is wanted
_MERGE = 1 << 20  # bytes of a merged piece at most


class _Setup(NamedTuple):
    """How one layer is made anew.  ``raw``: its global scale as the file will hold it, ``wide`` the same number."""

    recipe: Recipe
    kind: Scheme
    top: np.float32
    wide: NDArray[np.float32] | None
    raw: bytes


@dataclass
class Restorer:
    """Makes pieces for the layers of one checkpoint, as its exporter would have made them."""

    habits: Habits

    @property
    def source(self) -> Source:
        """The unquantised weights."""
        return self.habits.source

    def blocks(self, layer: QuantizedLayer, places: Iterable[int]) -> Iterator[Piece]:
        """Codes and scale of single blocks, under the layer's global scale: nothing else changes.

        ``places``: flat indices into the scale tensor, any order.  Raises RepairError where blocks have no scale
        byte of their own, where
        the global scale is broken, and where the source lacks the layer or is not finite in such a block.
        """
        lines, kind = scale_lines(layer), scheme(layer)
        if lines is None or kind.scale is None or len(kind.block) != 1:
            raise RepairError(f"{layer.scales.name}: its scales are not one code per block: restore the layer")
        recipe, size = self.habits.own(self.habits.recipe(layer).recipe, layer), kind.block[0]
        shape = grid(layer)
        flat = np.unique(np.fromiter(places, np.int64))
        if flat.size and not 0 <= flat[0] <= flat[-1] < layer.scales.size:
            raise RepairError(f"{layer.scales.name}: block {int(flat[-1])} lies outside its {layer.scales.size} scales")
        if lines.across:
            expert, column, row = np.unravel_index(flat, (shape.experts, lines.width, lines.rows))
        else:
            expert, row, column = np.unravel_index(flat, (shape.experts, lines.rows, lines.width))
        for e in np.unique(expert):
            mine = np.flatnonzero(expert == e)
            mine = mine[np.lexsort((column[mine], row[mine]))]
            wide = global_of(layer, self.habits.reader, int(e))
            amax = self.habits.amax(recipe, layer, wide)
            for low, high in _runs(row[mine], max(1, CHUNK // max(shape.columns, 1))):
                some = mine[low:high]
                first, last = int(row[some[0]]), int(row[some[-1]]) + 1
                w = self.source.rows(layer, int(e), first, last).reshape(last - first, lines.width, size)
                made = _made(recipe, w[row[some] - first, column[some]], kind, amax, wide, layer)
                yield from _merged(_block_pieces(layer, int(e), row[some], column[some], made))

    def codes(self, layer: QuantizedLayer, places: Iterable[int]) -> Iterator[Piece]:
        """Single codes of an FP8 layer under its scales: one byte each.

        ``places``: flat indices into the codes.  Raises RepairError for packed codes, and where a scale is not a
        positive number or the source is not finite there.
        """
        kind, shape, high = scheme(layer), grid(layer), step_rows(layer)
        if kind.packed:
            raise RepairError(f"{layer.codes.name}: packed codes are restored by block")
        recipe = self.habits.recipe(layer).recipe
        flat = np.unique(np.fromiter(places, np.int64))
        expert, row, column = np.unravel_index(flat, tuple(shape))
        for e in np.unique(expert):
            mine = np.flatnonzero(expert == e)
            for low, upto in _runs(row[mine], max(1, CHUNK // max(shape.columns, 1))):
                some = mine[low:upto]
                first = int(row[some[0]]) // high * high
                last = int(row[some[-1]]) + 1
                w = np.array(self.source.rows(layer, int(e), first, last))
                keep = np.zeros(w.shape, np.bool_)
                keep[row[some] - first, column[some]] = True
                w[~keep] = 0  # a NaN elsewhere in the source is none of this repair's concern
                scales = stored_scales(layer, self.habits.reader, int(e), first, last)
                try:
                    made = recipe.under(w, kind, scales, None).stored[row[some] - first, column[some]].tolist()
                except NumericError as error:
                    raise RepairError(f"{layer.codes.name}: codes cannot be restored: {error}") from None
                yield from _merged(
                    Piece(layer.codes, int(i), bytes([c])) for i, c in zip(flat[some], made, strict=True)
                )

    def requantise(self, layers: Sequence[QuantizedLayer]) -> Iterator[Piece]:
        """Everything of a layer, or of a fused set under one shared amax: codes, scales, global scale.

        Layouts without a global scale share nothing.  Raises RepairError when the source lacks a layer or is not
        finite, and NumericError never.
        """
        for layer in layers:
            setup = self._setup(layer, layers)
            if setup.raw:
                yield Piece(layer.parts[Role.GLOBAL], 0, setup.raw)
            yield from self._layer(layer, setup)

    def predict(self, layers: Sequence[QuantizedLayer]) -> dict[str, ErrorSums]:
        """By name, the error against the source that `requantise` of the same layers leaves; same exceptions."""
        found: dict[str, ErrorSums] = {}
        for layer in layers:
            setup = self._setup(layer, layers)
            sums = (error(chunk.weights, made) for chunk, made in self._quantised(layer, setup))
            found[layer.name] = sum(sums, start=ErrorSums())
        return found

    def _setup(self, layer: QuantizedLayer, layers: Sequence[QuantizedLayer]) -> _Setup:
        kind, recipe = scheme(layer), self.habits.recipe(layer).recipe
        if kind.global_scale is not GlobalScale.NONE:
            top = self.habits.top(recipe, [m for m in layers if scheme(m).global_scale is not GlobalScale.NONE])
            recipe = self.habits.own(recipe, layer)
        else:
            top = self.source.amax(self.habits.shared(layer)) if kind.block == (0, 0) else np.float32(0)
        wide, ref = recipe.global_scale(kind, top), layer.get(Role.GLOBAL)
        if wide is None or ref is None:
            return _Setup(recipe, kind, top, wide, b"")
        raw = float_bytes(np.full(ref.size, wide, np.float32), ref)
        as_held = floats(np.frombuffer(raw[: ref.itemsize], np.uint8), ref).reshape(())
        return _Setup(recipe, kind, top, as_held, raw)

    def _quantised(self, layer: QuantizedLayer, setup: _Setup) -> Iterator[tuple[Chunk, Quantised]]:
        for chunk in self.source.chunks(layer):
            made = _made(setup.recipe, chunk.weights, setup.kind, setup.top, setup.wide, layer)
            yield chunk, held(made, layer, chunk.weights, setup.recipe)

    def _layer(self, layer: QuantizedLayer, setup: _Setup) -> Iterator[Piece]:
        codes, scales = code_lines(layer), scale_lines(layer)
        waiting: list[Quantised] = []
        for chunk, made in self._quantised(layer, setup):
            first = chunk.first
            if codes.across:
                waiting.append(made)
                if first + len(chunk.weights) < codes.rows:
                    continue
                first = 0
                stored = np.concatenate([q.stored for q in waiting])
                bytes_of = np.concatenate([_scale_bytes(q, layer) for q in waiting])
                waiting = []
            else:
                stored, bytes_of = made.stored, _scale_bytes(made, layer)
            yield from write_lines(codes, chunk.expert, first, stored)
            if scales is not None:
                yield from write_lines(scales, chunk.expert, first // step_rows(layer), bytes_of)
            elif first == 0:
                at = [chunk.expert] if layer.scales.size > 1 else [0] if chunk.expert == 0 else []
                yield from (Piece(layer.scales, i * layer.scales.itemsize, bytes_of.tobytes()) for i in at)


def _made(
    recipe: Recipe, w: Floats, kind: Scheme, amax: np.float32, wide: NDArray[np.float32] | None, layer: QuantizedLayer
) -> Quantised:
    try:
        largest(w, "source weight")
        return recipe.quantise(np.ascontiguousarray(w), kind, amax, wide)
    except NumericError as error:
        raise RepairError(f"{layer.codes.name}: cannot be made from the source: {error}") from None


def _scale_bytes(made: Quantised, layer: QuantizedLayer) -> NDArray[np.uint8]:
    """Scales [rows of blocks, blocks] as bytes [rows of blocks, blocks * item size]."""
    if made.scales.dtype == np.uint8:
        return made.scales.astype(np.uint8, copy=False)
    raw = np.frombuffer(float_bytes(made.scales.astype(np.float32, copy=False), layer.scales), np.uint8)
    return raw.reshape(len(made.scales), -1)


def _runs(rows: NDArray[np.intp], most: int) -> Iterator[tuple[int, int]]:
    """(first, last) index ranges of ascending ``rows`` that lie close together and span at most ``most`` rows."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] - rows[i - 1] > _GAP or rows[i] - rows[start] >= most:
            yield start, i
            start = i


def _block_pieces(
    layer: QuantizedLayer, expert: int, row: NDArray[np.intp], column: NDArray[np.intp], made: Quantised
) -> Iterator[Piece]:
    """Pieces of blocks ``made`` ([blocks, bytes]), codes first, then scales."""
    codes, scales, unit = code_lines(layer), scale_lines(layer), made.stored.shape[-1]
    base = expert * codes.rows * codes.width
    for r, c, raw in zip(row.tolist(), column.tolist(), made.stored, strict=True):
        if codes.across:
            for j in range(unit):
                yield Piece(layer.codes, base + (c * unit + j) * codes.rows + r, raw[j : j + 1].tobytes())
        else:
            yield Piece(layer.codes, base + r * codes.width + c * unit, raw.tobytes())
    if scales is not None:
        base = expert * scales.rows * scales.width
        for r, c, code in zip(
            row.tolist(), column.tolist(), made.scales.astype(np.uint8).reshape(-1).tolist(), strict=True
        ):
            at = base + (c * scales.rows + r if scales.across else r * scales.width + c)
            yield Piece(layer.scales, at, bytes([code]))


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same bytes in fewer pieces: neighbours in one tensor become one."""
    held: list[bytes] = []
    start: Piece | None = None
    size = 0
    for piece in pieces:
        if start is not None and piece.ref == start.ref and piece.at == start.at + size and size < _MERGE:
            held.append(piece.new)
            size += len(piece.new)
            continue
        if start is not None:
            yield start._replace(new=b"".join(held))
        start, held, size = piece, [piece.new], len(piece.new)
    if start is not None:
        yield start._replace(new=b"".join(held))
