"""Rows of a quantised layer as they are stored, whatever its layout, and where new ones go.

The layer is seen as E experts of a weight [N, K] (E = 1 for a plain matrix): output rows first, input columns
last, also where the file holds it transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.formats.base import Role, block_shape
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from quant.floats import Word, narrow_bf16, widen
from quant.quantised import Quantised
from quant.scheme import Scheme
from repair.restore_pieces import Buffered, Piece, Reader, read_array

WORDS = {"F32": Word.FLOAT32, "F16": Word.FLOAT16, "BF16": Word.BFLOAT16}
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
_TURNED = 1 << 16  # bytes from which a transposed table is worth a kernel


class Grid(NamedTuple):
    """A layer as ``experts`` weights of ``rows`` x ``columns``."""

    experts: int
    rows: int
    columns: int


class Lines(NamedTuple):
    """How a tensor [E, N, width] lies in bytes: ``across``: stored [E, width, N]."""

    ref: TensorRef
    rows: int
    width: int
    across: bool


def grid(layer: QuantizedLayer) -> Grid:
    """Experts, rows and columns of a layer; RepairError where the codes have no two axes."""
    shape = layer.codes.shape
    if len(shape) < 2:
        raise RepairError(f"{layer.codes.name}: shape {list(shape)} is no matrix")
    twice = 2 if layer.format.packed and layer.codes.dtype != "F4" else 1
    if layer.format.packed and len(shape) == len(layer.scales.shape) + 1 >= 3:  # [..., N, K/32, 16]
        rows, columns, lead = shape[-3], shape[-2] * shape[-1] * 2, shape[:-3]
    elif layer.format.axis == -2:
        rows, columns, lead = shape[-1], shape[-2] * twice, shape[:-2]
    else:
        rows, columns, lead = shape[-2], shape[-1] * twice, shape[:-2]
    return Grid(int(np.prod(lead, dtype=np.int64)), rows, columns)


def scheme(layer: QuantizedLayer) -> Scheme:
    """The layer's scheme with the block its shapes show; RepairError where codes and scales do not fit together."""
    found, shape = layer.format.scheme, grid(layer)
    if found is None:
        raise RepairError(f"{layer.codes.name}: layout {layer.format.name} is not understood well enough to restore")
    size = layer.scales.size
    if not all(shape):
        raise RepairError(f"{layer.codes.name}: shape {list(layer.codes.shape)} holds no weights")
    if len(found.block) == 2 and found.block[0]:
        block = block_shape(layer.codes.shape, layer.scales.shape)
        if block is None:
            raise _misfit(layer)
        return found._replace(block=block)
    if found.block == (0, 0):
        fits = size in (1, shape.experts)
    elif found.block == (0,):
        fits = size == shape.experts * shape.rows
    else:
        block16 = found.block[0]
        fits = shape.columns % block16 == 0 and size == shape.experts * shape.rows * (shape.columns // block16)
        fits = fits and (not layer.format.is_fp4() or layer.codes.dtype == "F4" or layer.geometry() is not None)
    if not fits:
        raise _misfit(layer)
    return found


def _misfit(layer: QuantizedLayer) -> RepairError:
    shapes = f"{list(layer.codes.shape)} and {list(layer.scales.shape)}"
    return RepairError(f"{layer.codes.name} and {layer.scales.name}: shapes {shapes} do not fit together")


def step_rows(layer: QuantizedLayer) -> int:
    """Chunks of rows must begin at multiples of this: the height of a block."""
    block = scheme(layer).block
    return block[0] if len(block) == 2 and block[0] else 1


def code_lines(layer: QuantizedLayer) -> Lines:
    """Where the codes of a row lie."""
    shape = grid(layer)
    width = shape.columns // 2 if layer.format.packed else shape.columns
    return Lines(layer.codes, shape.rows, width, layer.format.axis == -2)


def scale_lines(layer: QuantizedLayer) -> Lines | None:
    """Where the scales of a row of blocks lie; None for one scale per tensor or per expert.  Width in elements."""
    shape, block = grid(layer), scheme(layer).block
    if block == (0, 0):
        return None
    high = block[0] if len(block) == 2 else 1
    width = -(-shape.columns // block[-1]) if block[-1] else 1
    return Lines(layer.scales, -(-shape.rows // high), width, layer.format.axis == -2)


def read_lines(reader: Reader, lines: Lines, expert: int, first: int, last: int) -> NDArray[np.uint8]:
    """Bytes of rows ``first`` to ``last`` of an expert, uint8 [rows, width * item size]."""
    item, base = lines.ref.itemsize, expert * lines.rows * lines.width
    if not lines.across:
        raw = read_array(reader, lines.ref, (base + first * lines.width) * item, (last - first) * lines.width * item)
        return raw.reshape(last - first, lines.width * item)
    table = read_table(reader, lines, expert, range(first, last), range(lines.width))
    return turned(table).reshape(last - first, lines.width * item)


def read_table(reader: Reader, lines: Lines, expert: int, rows: range, columns: range) -> NDArray[np.uint8]:
    """Bytes of rows and columns of an expert that lies across, as they lie: uint8 [columns, rows, item size]."""
    item, high = lines.ref.itemsize, len(rows)
    at = (expert * lines.rows * lines.width + columns.start * lines.rows + rows.start) * item
    if high == lines.rows:
        return read_array(reader, lines.ref, at, len(columns) * high * item).reshape(len(columns), high, item)
    if isinstance(reader, Buffered):
        raw = reader.table(lines.ref, at, lines.rows * item, high * item, len(columns))
        return raw.reshape(len(columns), high, item)
    table = np.empty((len(columns), high, item), np.uint8)
    for line in range(len(columns)):
        table[line] = read_array(reader, lines.ref, at + line * lines.rows * item, high * item).reshape(-1, item)
    return table


def turned(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes [width, rows, item] as [rows, width, item], contiguous."""
    width, rows, item = table.shape
    if item > 2 or table.size < _TURNED:
        return np.ascontiguousarray(table.transpose(1, 0, 2))
    from quant.cpu_transpose import transposed  # Numba: imported where it is first used

    if item == 1:
        return transposed(table.reshape(width, rows)).reshape(rows, width, 1)
    return transposed(table.view(np.uint16).reshape(width, rows)).view(np.uint8).reshape(rows, width, item)


def write_lines(lines: Lines, expert: int, first: int, rows: NDArray[np.uint8]) -> Iterator[Piece]:
    """Pieces that store ``rows`` (uint8 [rows, width * item size]) from row ``first`` on."""
    item, base = lines.ref.itemsize, expert * lines.rows * lines.width
    if not lines.across:
        yield Piece(lines.ref, (base + first * lines.width) * item, rows.tobytes())
        return
    table = np.ascontiguousarray(rows.reshape(len(rows), lines.width, item).transpose(1, 0, 2))
    if len(rows) == lines.rows:
        yield Piece(lines.ref, base * item, table.tobytes())
        return
    for line in range(lines.width):
        yield Piece(lines.ref, (base + line * lines.rows + first) * item, table[line].tobytes())


def stored_rows(layer: QuantizedLayer, reader: Reader, expert: int, first: int, last: int) -> Quantised:
    """Rows ``first`` to ``last`` (``first`` a multiple of `step_rows`) of an expert, as they are stored."""
    kind = scheme(layer)
    codes = read_lines(reader, code_lines(layer), expert, first, last)
    return Quantised(kind, codes, stored_scales(layer, reader, expert, first, last), global_of(layer, reader, expert))


def stored_scales(
    layer: QuantizedLayer, reader: Reader, expert: int, first: int, last: int
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Scales of rows ``first`` to ``last`` of an expert: codes (uint8) or float32, [rows of blocks, blocks]."""
    kind, lines = scheme(layer), scale_lines(layer)
    item = layer.scales.itemsize
    if lines is None:
        at = expert * item if layer.scales.size > 1 else 0
        raw = read_array(reader, layer.scales, at, item).reshape(1, item)
    else:
        high = step_rows(layer)
        raw = read_lines(reader, lines, expert, first // high, -(-last // high))
    if kind.scale is not None:
        return raw
    return floats(raw, layer.scales)


def global_of(layer: QuantizedLayer, reader: Reader, expert: int) -> NDArray[np.float32] | None:
    """The second-level scale of an expert, float32 []; None where the layout has none.  RepairError on odd shapes."""
    ref = layer.get(Role.GLOBAL)
    if ref is None:
        return None
    if ref.size not in (1, grid(layer).experts):
        raise RepairError(f"{ref.name}: {ref.size} numbers for {grid(layer).experts} experts")
    at = expert * ref.itemsize if ref.size > 1 else 0
    return floats(read_array(reader, ref, at, ref.itemsize).reshape(1, -1), ref).reshape(())


def floats(raw: NDArray[np.uint8], ref: TensorRef) -> NDArray[np.float32]:
    """Bytes [rows, n * item size] of a float tensor as float32 [rows, n]; RepairError on any other dtype."""
    return widen(native(raw, ref))


def native(raw: NDArray[np.uint8], ref: TensorRef) -> NDArray[Any]:
    """The same in the precision they are stored in: float32, float16 or bfloat16 words."""
    if ref.dtype not in WORDS:
        raise RepairError(f"{ref.name}: weights or scales of dtype {ref.dtype} are not read")
    return np.ascontiguousarray(raw).view(_NUMPY[ref.dtype])


def float_bytes(values: NDArray[np.float32], ref: TensorRef) -> bytes:
    """``values`` as the tensor stores them, rounded to nearest; RepairError on a dtype that is not a float's."""
    if ref.dtype == "BF16":
        return narrow_bf16(values).astype("<u2").tobytes()
    if ref.dtype not in _NUMPY:
        raise RepairError(f"{ref.name}: a number cannot be stored as {ref.dtype}")
    with np.errstate(over="ignore"):
        return values.astype(_NUMPY[ref.dtype]).tobytes()
