"""Two weights that both lie across, [K, N], against each other in Numba: compared as they lie, nothing is turned.

Blocks run down the columns, sixteen columns side by side; else as in `cpu_distance`.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from quant import blocks
from quant import cpu_vectors as vectors
from quant.cpu_blocks import finish, gather, hide, settled
from quant.cpu_distance import FULL, HALF, NO_BYTES, NO_FLOATS, NO_INDEX, PAIRS, Side, plain, put_together
from quant.cpu_error import _widen
from quant.distance import Distance, Operand, Spot
from quant.errors import NumericError
from quant.floats import LAYOUT, Word, flat_words
from quant.quantised import Quantised

_TILE = 8192  # elements at a time: lines of 512, long enough to be fetched ahead
WIDEST = 32  # of a block that is compared across


def distance(a: Operand, b: Operand, block: tuple[int, int], keep: int) -> Distance:
    """See ``distance.distance``: of operands that lie across.

    Raises NumericError unless blocks are 1 x 16 or 1 x 32 and fill K, rows follow each other, a multiple of 16 of
    them, and codes are packed.
    """
    rows, columns = b.shape
    fits = block in ((1, 16), (1, WIDEST)) and not (rows % 16 or columns % block[1])
    if not fits or a.rows.step != 1 or b.rows.step != 1:
        raise NumericError(f"{rows} x {columns} weights in blocks of {block} are not compared across")
    if not rows or not columns:
        return Distance()
    sums, counts = np.zeros(5, np.float64), np.zeros(5, np.int64)
    errors, spots = np.zeros(keep, np.float64), np.zeros((keep, 2), np.int64)
    side = _side(b)
    _distance(_side(a), side, columns, rows, block[1], sums, counts, errors, spots)
    found = [(float(e), int(at[1]), int(at[0])) for e, at in zip(errors, spots, strict=True) if e > 0]
    listed = tuple(Spot(e, row, at, _step(side, row, at)) for e, row, at in found)
    return put_together(rows * columns, sums, counts, listed)


def _step(side: Side, row: int, column: int) -> float | None:
    return float(side.step[column // side.width, side.first + row]) if side.kind == PAIRS else None


def _side(operand: Operand) -> Side:
    held, first = operand.weights, operand.rows.start
    gain = NO_FLOATS if operand.gain is None else np.require(operand.gain, np.float32, ["C", "W"])
    if not isinstance(held, Quantised):
        word, flat = flat_words(held)
        kind = FULL if word is Word.FLOAT32 else HALF
        rest = (LAYOUT[word], NO_BYTES, NO_INDEX, 1, NO_FLOATS)
        return Side(kind, plain(flat), first, held.shape[-1], *rest, gain)
    block, step = held.scheme.block, held.steps()
    if not held.scheme.packed or len(block) != 1 or block[0] % 2 or not block[0]:
        raise NumericError("codes that are not packed are not compared across")
    blocks.require_fit(step.T.shape, (held.stored.shape[1], 2 * len(held.stored)), block)
    table = np.require(step, requirements=["C", "W"])
    rest = (LAYOUT[Word.FLOAT32], table, NO_INDEX, block[0], NO_FLOATS)
    return Side(PAIRS, plain(held.stored), first, held.stored.shape[1], *rest, gain)


@nb.njit(nogil=True, cache=True)
def _load(side, top, high, c, n, bits, w):  # type: ignore[no-untyped-def]
    """Columns ``c`` to ``c + n`` of lines ``top`` to ``top + high`` into ``w``, line after line; ``bits`` are its."""
    for i in range(high if side.kind != 2 else 0):
        at = (top + i) * side.stride + side.first + c
        if side.kind == 0:
            words = side.raw[2 * at : 2 * (at + n)].view(np.uint16)
            _widen(words, side.layout, n, bits[i * n :], w[i * n :])
        else:
            _widen(side.raw[4 * at : 4 * (at + n)].view(np.uint32), side.layout, n, bits[i * n :], w[i * n :])
    for i in range(0, high if side.kind == 2 else 0, 2):
        at, step = (top + i) // 2 * side.stride + side.first + c, side.step[(top + i) // side.width]
        for j in range(0, n, 16):
            vectors.decode_across(side.raw, at + j, step, side.first + c + j, w, i * n + j, n)  # type: ignore[call-arg]
    if side.gain.size:
        for i in range(high):
            for j in range(i * n, i * n + n):
                w[j] *= side.gain[top + i]


@nb.njit(nogil=True, cache=True)
def _errors(w, v, high, n, part, held, sums):  # type: ignore[no-untyped-def]
    for j in range(0, n, 16):
        vectors.errors_across(w, v, high, n, j, part, held, sums)  # type: ignore[call-arg]


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _distance(a, b, lines, across, high, sums, counts, errors, spots):  # type: ignore[no-untyped-def]
    bits_a, bits_b = np.empty(_TILE, np.uint32), np.empty(_TILE, np.uint32)
    w, v = bits_a.view(np.float32), bits_b.view(np.float32)
    part, held, mine = np.empty(_TILE, np.float64), np.empty(_TILE, np.float64), np.zeros(5, np.float64)
    take, edge = _TILE // high, np.empty(2, np.float64)
    hid = np.zeros(take, np.bool_)
    for top in range(0, lines, high):
        for c in range(0, across, take):
            n = min(take, across - c)
            _load(a, top, high, c, n, bits_a, w)
            _load(b, top, high, c, n, bits_b, v)
            mine[:] = 0
            _errors(w, v, high, n, part, held, mine)
            clean = np.isfinite(mine[1]) and np.isfinite(mine[2])
            if not clean:
                hid[:] = False
                for i in range(0, high * n, n):
                    hide(w[i:], v[i:], n, 0, 1, hid, counts)
                mine[:] = 0
                _errors(w, v, high, n, part, held, mine)
            gather(mine, sums)
            if clean and settled(part, n, mine, edge, errors, counts):
                continue
            finish(part, held, n, hid, top, c, 1, counts, errors, spots)
            hid[:] = False
    sums[4] = np.sqrt(sums[4]) if np.isfinite(sums[0]) else sums[0]
