"""Two weights against each other in Numba: both are dequantised in the first cache and never stored.

One thread works on one call; the callers run several.  The order of the float64 sums is the compiler's: the same
machine gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant import blocks
from quant.cpu_blocks import CHUNK, finish, gather, hide, measure, settled, squares
from quant.cpu_error import _decode_bytes, _decode_pairs, _widen, element_values
from quant.distance import Distance, Operand, Spot
from quant.errors import NumericError
from quant.floats import LAYOUT, Floats, Word, flat_words
from quant.metrics import ErrorSums
from quant.quantised import Quantised

HALF, FULL, PAIRS, BYTES = 0, 1, 2, 3  # words of 16 and 32 bits, two codes a byte, one code a byte


class Side(NamedTuple):
    """An operand as the kernel takes it; what a kind does not use is empty."""

    kind: int
    raw: NDArray[np.uint8]
    first: int
    stride: int
    layout: tuple[np.uint32, np.uint32, np.float32, np.uint32]
    step: NDArray[np.float32]
    row_steps: NDArray[np.intp]
    width: int
    values: NDArray[np.float32]
    gain: NDArray[np.float32]


def distance(a: Operand, b: Operand, block: tuple[int, int], keep: int) -> Distance:
    """See ``distance.distance``."""
    rows, columns = b.shape
    if not rows or not columns:
        return Distance()
    sums, counts = np.zeros(5, np.float64), np.zeros(5, np.int64)
    errors, spots = np.zeros(keep, np.float64), np.zeros((keep, 2), np.int64)
    high, width = min(block[0], rows), min(block[1], columns)
    if width % 16 and any(isinstance(x.weights, Quantised) and x.weights.scheme.packed for x in (a, b)):
        raise NumericError(f"packed codes cannot be cut into blocks of {width} columns")
    side = _side(b)
    _distance(_side(a), side, rows, columns, high, width, sums, counts, errors, spots)
    found = [(float(e), int(at[0]), int(at[1])) for e, at in zip(errors, spots, strict=True) if e > 0]
    listed = tuple(Spot(e, row, column, _step(side, row, column)) for e, row, column in found)
    return put_together(rows * columns, sums, counts, listed)


def put_together(size: int, sums: NDArray[np.float64], counts: NDArray[np.int64], worst: tuple[Spot, ...]) -> Distance:
    """What the kernels counted of ``size`` elements: five sums, and blocks, exact, rounding, incomparable, broken."""
    found, exact, rounding, incomparable, broken = (int(x) for x in counts)
    total = ErrorSums(size - incomparable, *(float(x) for x in sums))
    return Distance(total, found, exact, rounding, incomparable, broken, worst)


def identical(a: Floats, b: Floats) -> bool:
    """See ``distance.identical``."""
    word, flat = flat_words(a)
    infinity = {Word.FLOAT32: 0x7F800000, Word.BFLOAT16: 0x7F80, Word.FLOAT16: 0x7C00}[word]
    mine, other = (plain(x).view(flat.dtype) for x in (flat, flat_words(b)[1]))
    return bool(_identical(mine, other, flat.dtype.type(infinity)))


def _step(side: Side, row: int, column: int) -> float | None:
    if side.kind in (HALF, FULL):
        return None
    return float(side.step[side.row_steps[side.first + row * side.stride], column // side.width])


NO_BYTES, NO_FLOATS = np.zeros((1, 1), np.float32), np.zeros(0, np.float32)
NO_INDEX = np.zeros(1, np.intp)


def _side(operand: Operand) -> Side:
    held, rows = operand.weights, operand.rows
    gain = NO_FLOATS if operand.gain is None else np.require(operand.gain, np.float32, ["C", "W"])
    if not isinstance(held, Quantised):
        word, flat = flat_words(held)
        kind = FULL if word is Word.FLOAT32 else HALF
        rest = (LAYOUT[word], NO_BYTES, NO_INDEX, 1, NO_FLOATS)
        return Side(kind, plain(flat), rows.start, rows.step, *rest, gain)
    kind = PAIRS if held.scheme.packed else BYTES
    shape = (held.stored.shape[0], operand.shape[1])
    block, step = held.scheme.block, held.steps()
    blocks.require_fit(step.shape, shape, block)
    table = np.require(step, requirements=["C", "W"]).reshape(-1, step.shape[-1])
    index, width = blocks.scale_rows(step.shape, shape, block), block[-1] or shape[-1]
    codes = (LAYOUT[Word.FLOAT32], table, index, width, element_values(held))
    return Side(kind, plain(held.stored), rows.start, rows.step, *codes, gain)


def plain(raw: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes in one row, read-only as a file's are: the kernel is compiled once, whoever owns the memory."""
    flat = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    flat.flags.writeable = False
    return flat


@nb.njit(nogil=True, cache=True)
def _identical(a, b, infinity):  # type: ignore[no-untyped-def]
    for first in range(0, a.size, 4096):
        differ, top = a[0] & 0, a[0] & 0
        for j in range(first, min(first + 4096, a.size)):
            differ |= a[j] ^ b[j]
            top = max(top, a[j] & infinity)
        if differ != 0 or top == infinity:
            return False
    return True


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _load(side, r, c, n, columns, bits, w):  # type: ignore[no-untyped-def]
    """Values of columns ``c`` to ``c + n`` of row ``r`` into ``w``, whose bits are ``bits``."""
    row = side.first + r * side.stride
    at = row * columns + c
    if side.kind == 0:
        _widen(side.raw[2 * at : 2 * (at + n)].view(np.uint16), side.layout, n, bits, w)
    elif side.kind == 1:
        _widen(side.raw[4 * at : 4 * (at + n)].view(np.uint32), side.layout, n, bits, w)
    elif side.kind == 2:
        step = side.step[side.row_steps[row]]
        _decode_pairs(side.raw[at // 2 :], step, c, n, side.width, w)
    else:
        _decode_bytes(side.raw[at:], side.values, side.step[side.row_steps[row]], c, n, side.width, w)
    if side.gain.size:
        for j in range(n):
            w[j] *= side.gain[c + j]


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _distance(a, b, rows, columns, high, width, sums, counts, errors, spots):  # type: ignore[no-untyped-def]
    bits_a, bits_b, room = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint32), np.empty(2 * CHUNK, np.float64)
    w, v = bits_a.view(np.float32), bits_b.view(np.float32)
    part, held, mine = np.empty(CHUNK, np.float64), np.empty(CHUNK, np.float64), np.zeros(5, np.float64)
    across = (columns + width - 1) // width
    error, energy = np.zeros(across, np.float64), np.zeros(across, np.float64)
    hid, edge = np.zeros(across, np.bool_), np.empty(2, np.float64)
    take = CHUNK // width * width if width <= CHUNK else CHUNK
    single = high == 1 and width <= CHUNK
    for r in range(rows):
        c = 0
        while c < columns:
            end = columns if width <= CHUNK else min(columns, c // width * width + width)
            n = min(take, end - c)
            _load(a, r, c, n, columns, bits_a, w)
            _load(b, r, c, n, columns, bits_b, v)
            mine[:] = 0
            count = measure(w, v, n, width, not single, room, part, held, mine)
            clean = np.isfinite(mine[1]) and np.isfinite(mine[2])
            if not clean:
                hide(w, v, n, c, width, hid, counts)
                mine[:] = 0
                count = measure(w, v, n, width, not single, room, part, held, mine)
            gather(mine, sums)
            block = c // width
            if not single:
                for k in range(count):
                    error[block + k] += part[k]
                    energy[block + k] += held[k]
            elif not (clean and settled(part, count, mine, edge, errors, counts)):
                squares(v, n, width, held)
                finish(part, held, count, hid[block:], r, c, width, counts, errors, spots)
            c += n
        if (r + 1) % high and r + 1 < rows:
            continue
        if not single:
            finish(error, energy, across, hid, r // high * high, 0, width, counts, errors, spots)
            error[:] = 0
            energy[:] = 0
        hid[:] = False
    sums[4] = np.sqrt(sums[4]) if np.isfinite(sums[0]) else sums[0]
