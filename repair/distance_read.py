"""Rows of both sides of a pair as operands, and the cut of a pair into pieces of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.distance import Operand
from quant.floats import widen
from repair.distance_across import beside, laid, whole_lines
from repair.distance_across import codes as lying_codes
from repair.distance_across import floats as lying_floats
from repair.distance_pairs import Pair
from repair.names_matrix import Region
from repair.restore_pieces import Reader, read_array
from repair.source_codes import Grid, Lines, grid, native, read_lines, step_rows, stored_rows

PIECE = 1 << 21  # weights of a piece
WIDE = 40 << 20  # bytes of a piece where a tensor lies across
_BLOCK = 32  # columns of a piece that is cut across are a multiple of this
_SIDE = 16  # and rows, where they are many, of this


class Piece(NamedTuple):
    """Part of a pair: rows ``rows`` of an expert of B, or elements ``rows`` of a flat pair.

    ``region``: the number of the only region they come from; None where they come from several.  ``columns``: those
    of the piece, where both sides lie across and are compared as they lie; None for all.
    """

    expert: int
    rows: range
    region: int | None = 0
    columns: range | None = None


def pieces(pair: Pair) -> Iterator[Piece]:
    """The pair cut, in order of experts; every weight is in one piece, and no block in two."""
    shape, high = pair.shape, pair.block[0]
    if pair.flat:
        size = shape.rows * shape.columns
        wide = pair.block[1]
        step = PIECE // wide * wide or PIECE
        yield from (Piece(0, range(first, min(first + step, size))) for first in range(0, size, step))
        return
    if whole_lines(pair):
        yield from _line_pieces(pair)
        return
    take = _take(pair) // high * high or high
    for number, region in enumerate(pair.regions):
        if high == 1 or _whole_blocks(region.into, high, shape.rows):
            for first in range(0, len(region.into), take):
                yield Piece(region.expert, region.into[first : first + take], number)
    split = {r.expert for r in pair.regions if high > 1 and not _whole_blocks(r.into, high, shape.rows)}
    for expert in sorted(split):
        for first in range(0, shape.rows, take):
            yield Piece(expert, range(first, min(first + take, shape.rows)), None)


def _line_pieces(pair: Pair) -> Iterator[Piece]:
    """Ranges of columns, of all rows of a region: lines of tensors that lie across."""
    columns = pair.shape.columns
    for number, region in enumerate(pair.regions):
        take = max(PIECE // len(region.into) // _BLOCK, 1) * _BLOCK
        for first in range(0, columns, take):
            part = range(first, min(first + take, columns))
            yield Piece(region.expert, region.into, number, part)


def weights(pair: Pair, piece: Piece) -> int:
    """How many there are in a piece."""
    if pair.flat:
        return len(piece.rows)
    return len(piece.rows) * (len(piece.columns) if piece.columns else pair.shape.columns)


def _whole_blocks(into: range, high: int, rows: int) -> bool:
    """Whether rows hold whole blocks of a height only."""
    return into.step == 1 and into.start % high == 0 and (into.stop % high == 0 or into.stop == rows)


def _take(pair: Pair) -> int:
    """Rows of a piece: about PIECE weights, more where a side lies across and its reads would be small."""
    usual = max(PIECE // max(pair.shape.columns, 1), 1)
    if not _lies_across(pair):
        return usual
    most = max(usual, WIDE // row_bytes(pair))
    even = -(-pair.shape.rows // max(round(pair.shape.rows / most), 1))
    return -(-even // _SIDE) * _SIDE


def _lies_across(pair: Pair) -> bool:
    sides = [(pair.layer, pair.transposed), *((r.matrix.layer, r.transposed) for r in pair.regions[:1])]
    return any(turned or (layer is not None and layer.format.axis == -2) for layer, turned in sides)


def row_bytes(pair: Pair) -> int:
    """Memory that a row of a pair takes while it is compared, about; twice the bytes of what is turned."""
    shape = pair.shape
    twice = 2 if _lies_across(pair) else 1
    mine = pair.ref.nbytes // max(shape.experts * shape.rows, 1)
    matrix = pair.regions[0].matrix
    theirs = matrix.ref.nbytes * shape.columns // max(math.prod(matrix.shape), 1)
    if twice == 2 and (beside(pair) or whole_lines(pair)):
        return max(1, mine * 2 + theirs + shape.columns // 2)
    return max(1, (mine + theirs) * twice + shape.columns // 2)


def piece_bytes(pair: Pair, piece: Piece) -> int:
    """Memory that a piece takes while it is compared, about."""
    if pair.flat:
        return len(piece.rows) * (pair.ref.itemsize + pair.regions[0].matrix.ref.itemsize)
    if piece.columns:
        return weights(pair, piece) * row_bytes(pair) // pair.shape.columns
    return len(piece.rows) * (row_bytes(pair) if piece.region is not None else row_bytes(pair) + 4 * pair.shape.columns)


def operands(pair: Pair, piece: Piece, a: Reader, b: Reader) -> tuple[Operand, Operand]:
    """Both sides of a piece, [rows, K]."""
    if pair.flat:
        matrix = pair.regions[0].matrix
        return _stretch(matrix.ref, a, piece.rows), _stretch(pair.ref, b, piece.rows)
    if piece.region is not None and (piece.columns or beside(pair)):
        return _across(pair, piece, pair.regions[piece.region], a, b)
    mine = _rows(pair.ref, pair.layer, pair.shape, pair.transposed, piece.expert, piece.rows, b)
    if piece.region is not None:
        region = pair.regions[piece.region]
        return _source_rows(region, _within(region, piece.rows), a), mine
    dense = np.empty((len(piece.rows), pair.shape.columns), np.float32)
    for region in pair.regions:
        low = max(0, -(-(piece.rows.start - region.into.start) // region.into.step))
        rows = region.rows[low : max(low, -(-(piece.rows.stop - region.into.start) // region.into.step))]
        if region.expert == piece.expert and rows:
            into = region.into[low : low + len(rows)]
            first = piece.rows.start
            dense[into.start - first : into.stop - first : into.step] = _source_rows(region, rows, a).values()
    return Operand(dense, range(len(dense))), mine


def _across(pair: Pair, piece: Piece, region: Region, a: Reader, b: Reader) -> tuple[Operand, Operand]:
    """Both sides of a piece as they lie, [K, N]."""
    assert pair.layer is not None  # else there are no blocks of sixteen
    columns, rows = piece.columns or range(pair.shape.columns), _within(region, piece.rows)
    layer = region.matrix.layer
    if layer is None:
        theirs = lying_floats(region, _source_grid(region), rows, columns, a)
    else:
        theirs = lying_codes(layer, region.slab, rows, columns, gain(layer, a), a)
    if piece.columns:
        return theirs, lying_codes(pair.layer, piece.expert, piece.rows, columns, gain(pair.layer, b), b)
    return theirs, laid(_rows(pair.ref, pair.layer, pair.shape, pair.transposed, piece.expert, piece.rows, b))


def _within(region: Region, rows: range) -> range:
    """The source's rows of these of B's."""
    low = (rows.start - region.into.start) // region.into.step
    return region.rows[low : low + len(rows)]


def _source_rows(region: Region, rows: range, reader: Reader) -> Operand:
    matrix = region.matrix
    return _rows(matrix.ref, matrix.layer, _source_grid(region), region.transposed, region.slab, rows, reader)


def _source_grid(region: Region) -> Grid:
    if region.matrix.layer is not None:
        return grid(region.matrix.layer)
    sides = region.matrix.shape[-2:]
    return Grid(1, *(sides[::-1] if region.transposed else sides))


def _rows(
    ref: TensorRef, layer: QuantizedLayer | None, shape: Grid, across: bool, expert: int, rows: range, reader: Reader
) -> Operand:
    low, high = rows[0], rows[-1] + 1
    if layer is None:
        lines = Lines(ref, shape.rows, shape.columns, across)
        span = native(read_lines(reader, lines, expert, low, high), ref)
        return Operand(span, range(0, high - low, rows.step))
    tall = step_rows(layer)
    begin = low // tall * tall
    stored = stored_rows(layer, reader, expert, begin, min(-(-high // tall) * tall, shape.rows))
    return Operand(stored, range(low - begin, high - begin, rows.step), gain(layer, reader))


def gain(layer: QuantizedLayer, reader: Reader) -> NDArray[np.float32] | None:
    """What multiplies each input column before the codes do (AWQ), float32 [K]; None without."""
    ref = layer.get(Role.PRE_QUANT)
    if ref is None:
        return None
    return widen(native(read_array(reader, ref, 0, ref.nbytes), ref)).reshape(-1)


def _stretch(ref: TensorRef, reader: Reader, elements: range) -> Operand:
    raw = read_array(reader, ref, elements.start * ref.itemsize, len(elements) * ref.itemsize)
    return Operand(native(raw, ref).reshape(1, -1), range(1))
