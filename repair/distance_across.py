"""Rows of a pair as they lie, [K, N]: where a side lies across and nothing, or little, need be turned.

Where both sides lie across, pieces are ranges of columns: lines of the file, read in one go.  Where only the float
side does, the codes of the other are turned: a quarter of the bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from auditor.layer import QuantizedLayer
from quant.distance import Operand
from quant.quantised import Quantised
from repair.distance_pairs import Pair
from repair.names_matrix import Region
from repair.restore_pieces import Reader
from repair.source_codes import Grid, Lines, code_lines, global_of, native, read_table, scale_lines, scheme, turned

_WIDTHS = (16, 32)  # of blocks that are compared across
_SIDE = 16  # rows that are compared side by side
_TALLEST = 1 << 17  # rows of which a block each is read at once


def layer_across(layer: QuantizedLayer | None) -> bool:
    """Whether a layer is stored [K, N]."""
    return layer is not None and layer.format.axis == -2


def whole_lines(pair: Pair) -> bool:
    """Whether both sides lie across, and all can be compared as it lies."""
    regions = pair.regions
    mine = _fits(pair) and pair.layer is not None and _packed(pair.layer) and pair.shape.rows <= _TALLEST
    return mine and all(_lies_across(region) for region in regions)


def beside(pair: Pair) -> bool:
    """Whether a float side lies across, and the codes of the other do not."""
    floats = all(region.transposed and region.matrix.layer is None for region in pair.regions)
    return _fits(pair) and not layer_across(pair.layer) and floats


def _lies_across(region: Region) -> bool:
    return region.transposed if region.matrix.layer is None else _packed(region.matrix.layer)


def _packed(layer: QuantizedLayer) -> bool:
    return layer_across(layer) and layer.codes.dtype == "U8" and scheme(layer).packed


def _fits(pair: Pair) -> bool:
    if pair.layer is None or pair.flat or pair.block not in [(1, width) for width in _WIDTHS]:
        return False
    steps = all(region.rows.step == region.into.step == 1 for region in pair.regions)
    sixteens = all(len(region.into) % _SIDE == 0 for region in pair.regions)
    return steps and sixteens and pair.shape.columns % _WIDTHS[-1] == 0 and scheme(pair.layer).packed


def floats(region: Region, shape: Grid, rows: range, columns: range, reader: Reader) -> Operand:
    """Rows and columns of a source matrix of floats that lies across."""
    ref = region.matrix.ref
    table = read_table(reader, Lines(ref, shape.rows, shape.columns, True), region.slab, rows, columns)
    return Operand(native(table.reshape(len(columns), -1), ref), range(len(rows)), None, True)


def codes(
    layer: QuantizedLayer, expert: int, rows: range, columns: range, gain: NDArray[np.float32] | None, reader: Reader
) -> Operand:
    """Rows and columns of a layer that lies across."""
    lines, kind, scales = code_lines(layer), scheme(layer), scale_lines(layer)
    assert scales is not None  # one scale for each sixteen or thirty-two
    wide = kind.block[0]
    packed = read_table(reader, lines, expert, rows, range(columns.start // 2, columns.stop // 2))
    blocks = read_table(reader, scales, expert, rows, range(columns.start // wide, columns.stop // wide))
    stored = Quantised(kind, packed[..., 0], blocks[..., 0], global_of(layer, reader, expert))
    return Operand(stored, range(len(rows)), None if gain is None else gain[columns.start : columns.stop], True)


def laid(operand: Operand) -> Operand:
    """Codes and their scales turned so that they lie across."""
    held = operand.weights
    assert isinstance(held, Quantised)
    assert held.scheme.scale is not None
    stored, scales = (turned(side.view(np.uint8)[..., None])[..., 0] for side in (held.stored, held.scales))
    return replace(operand, weights=replace(held, stored=stored, scales=scales), across=True)
