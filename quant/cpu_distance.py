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
from quant import cpu_vectors as vectors
from quant.cpu_error import _add, _decode_bytes, _decode_pairs, _largest, _widen, element_values
from quant.distance import ROUNDING, Distance, Operand, Spot
from quant.errors import NumericError
from quant.floats import LAYOUT, Floats, Word, flat_words
from quant.metrics import ErrorSums
from quant.quantised import Quantised

_CHUNK = 2048  # elements at a time: all of a step stays in the first cache
_HALF, _FULL, _PAIRS, _BYTES = 0, 1, 2, 3  # words of 16 and 32 bits, two codes a byte, one code a byte


class _Side(NamedTuple):
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
    mine, other = (_plain(x).view(flat.dtype) for x in (flat, flat_words(b)[1]))
    return bool(_identical(mine, other, flat.dtype.type(infinity)))


def _step(side: _Side, row: int, column: int) -> float | None:
    if side.kind in (_HALF, _FULL):
        return None
    return float(side.step[side.row_steps[side.first + row * side.stride], column // side.width])


_NO_BYTES, _NO_FLOATS = np.zeros((1, 1), np.float32), np.zeros(0, np.float32)
_NO_INDEX = np.zeros(1, np.intp)


def _side(operand: Operand) -> _Side:
    held, rows = operand.weights, operand.rows
    gain = _NO_FLOATS if operand.gain is None else np.require(operand.gain, np.float32, ["C", "W"])
    if not isinstance(held, Quantised):
        word, flat = flat_words(held)
        kind = _FULL if word is Word.FLOAT32 else _HALF
        rest = (LAYOUT[word], _NO_BYTES, _NO_INDEX, 1, _NO_FLOATS)
        return _Side(kind, _plain(flat), rows.start, rows.step, *rest, gain)
    kind = _PAIRS if held.scheme.packed else _BYTES
    shape = (held.stored.shape[0], operand.shape[1])
    block, step = held.scheme.block, held.steps()
    blocks.require_fit(step.shape, shape, block)
    table = np.require(step, requirements=["C", "W"]).reshape(-1, step.shape[-1])
    index, width = blocks.scale_rows(step.shape, shape, block), block[-1] or shape[-1]
    codes = (LAYOUT[Word.FLOAT32], table, index, width, element_values(held))
    return _Side(kind, _plain(held.stored), rows.start, rows.step, *codes, gain)


def _plain(raw: NDArray[Any]) -> NDArray[np.uint8]:
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


@nb.njit(nogil=True, cache=True)
def _hide(a, b, n, c, width, hid, counts):  # type: ignore[no-untyped-def]
    """Zero what cannot be compared on both sides, and mark its block; count it, and what is broken on one side."""
    for j in range(n):
        if (np.isnan(a[j]) and np.isnan(b[j])) or (np.isinf(a[j]) and a[j] == b[j]):
            a[j] = b[j] = np.float32(0)
            hid[(c + j) // width] = True
            counts[3] += 1
        elif not (np.isfinite(a[j]) and np.isfinite(b[j])):
            counts[4] += 1


@nb.njit(nogil=True, cache=True)
def _keep(error, row, column, errors, spots):  # type: ignore[no-untyped-def]
    """Insert a block into the list of the worst, before those of a smaller error."""
    at = errors.size
    while at > 0 and error > errors[at - 1]:
        at -= 1
    for k in range(errors.size - 1, at, -1):
        errors[k], spots[k, 0], spots[k, 1] = errors[k - 1], spots[k - 1, 0], spots[k - 1, 1]
    errors[at], spots[at, 0], spots[at, 1] = error, row, column


@nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _blocks(d, n, width, part):  # type: ignore[no-untyped-def]
    """Sums of squares of the blocks of ``width`` of ``d``, the last one partial, into ``part``; how many there are."""
    if width % 16 == 0 and n % 16 == 0:
        each, count = width // 16, 0
        for first in range(0, n // 16, each):
            squared = 0.0
            for k in range(first, min(first + each, n // 16)):
                squared += vectors.squares(d, 16 * k)  # type: ignore[call-arg]
            part[count] = squared
            count += 1
        return count
    count = 0
    for start in range(0, n, width):
        squared = 0.0
        for j in range(start, min(start + width, n)):
            squared += np.float64(d[j]) * np.float64(d[j])
        part[count] = squared
        count += 1
    return count


@nb.njit(nogil=True, cache=True)
def _join(fine, groups, each, part):  # type: ignore[no-untyped-def]
    """Sums of ``each`` neighbours of ``fine``, the last of what is left, into ``part``; how many there are."""
    count = 0
    for first in range(0, groups, each):
        total = fine[first]
        for k in range(first + 1, min(first + each, groups)):
            total += fine[k]
        part[count] = total
        count += 1
    return count


@nb.njit(nogil=True, cache=True)
def _errors(w, v, n, width, energies, room, part, held, sums):  # type: ignore[no-untyped-def]
    """Squared errors of the blocks into ``part``, with ``energies`` their squares of v into ``held``; how many.

    ``sums`` grow by the four sums of `_add`, its last becomes the largest squared difference.
    """
    if n % 16 or width % 16:
        _add(w, v, n, room, sums)
        size = room.view(np.int64)
        size[n] = _largest(size, n, np.int64(0))
        sums[4] = max(sums[4], room[n] * room[n])
        if energies:
            _blocks(v, n, width, held)
        return _blocks(room, n, width, part)
    if width == 16:
        if energies:
            vectors.errors(w, v, n // 16, part, held, sums)  # type: ignore[call-arg]
        else:
            vectors.errors(w, v, n // 16, part, None, sums)  # type: ignore[call-arg]
        return n // 16
    if energies:
        vectors.errors(w, v, n // 16, room, room[_CHUNK:], sums)  # type: ignore[call-arg]
        _join(room[_CHUNK:], n // 16, width // 16, held)
    else:
        vectors.errors(w, v, n // 16, room, None, sums)  # type: ignore[call-arg]
    return _join(room, n // 16, width // 16, part)


@nb.njit(nogil=True, cache=True)
def _spread(bits, count):  # type: ignore[no-untyped-def]
    """How many of the float64 patterns are 0, the smallest of the others less one, and the largest.

    Patterns of what is not negative order as the numbers do, NaN above all.
    """
    zeros, least, most = 0, ~np.uint64(0), np.uint64(0)
    for k in range(count):
        zeros += bits[k] == np.uint64(0)
        least = min(least, bits[k] - np.uint64(1))
        most = max(most, bits[k])
    return zeros, least, most


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _finish(part, held, count, hid, row, column, width, counts, errors, spots):  # type: ignore[no-untyped-def]
    """Count ``count`` whole blocks of errors ``part`` and energies ``held``; keep those that are among the worst."""
    counts[0] += count
    for k in range(count):
        if part[k] == 0:
            counts[1] += not hid[k]
            continue
        if part[k] <= ROUNDING * held[k]:
            counts[2] += not hid[k]
        error = part[k] if np.isfinite(part[k]) else np.inf
        if errors.size and error > errors[-1]:
            _keep(error, row, column + k * width, errors, spots)


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _distance(a, b, rows, columns, high, width, sums, counts, errors, spots):  # type: ignore[no-untyped-def]
    bits_a, bits_b, room = np.empty(_CHUNK, np.uint32), np.empty(_CHUNK, np.uint32), np.empty(2 * _CHUNK, np.float64)
    w, v = bits_a.view(np.float32), bits_b.view(np.float32)
    part, held, mine = np.empty(_CHUNK, np.float64), np.empty(_CHUNK, np.float64), np.zeros(5, np.float64)
    across = (columns + width - 1) // width
    error, energy = np.zeros(across, np.float64), np.zeros(across, np.float64)
    hid, edge = np.zeros(across, np.bool_), np.empty(2, np.float64)
    take = _CHUNK // width * width if width <= _CHUNK else _CHUNK
    single = high == 1 and width <= _CHUNK
    for r in range(rows):
        c = 0
        while c < columns:
            end = columns if width <= _CHUNK else min(columns, c // width * width + width)
            n = min(take, end - c)
            _load(a, r, c, n, columns, bits_a, w)
            _load(b, r, c, n, columns, bits_b, v)
            mine[:] = 0
            count = _errors(w, v, n, width, not single, room, part, held, mine)
            clean = np.isfinite(mine[1]) and np.isfinite(mine[2])
            if not clean:
                _hide(w, v, n, c, width, hid, counts)
                mine[:] = 0
                count = _errors(w, v, n, width, not single, room, part, held, mine)
            _gather(mine, sums)
            block = c // width
            if not single:
                for k in range(count):
                    error[block + k] += part[k]
                    energy[block + k] += held[k]
            elif not (clean and _settled(part, count, mine, edge, errors, counts)):
                _blocks(v, n, width, held)
                _finish(part, held, count, hid[block:], r, c, width, counts, errors, spots)
            c += n
        if (r + 1) % high and r + 1 < rows:
            continue
        if not single:
            _finish(error, energy, across, hid, r // high * high, 0, width, counts, errors, spots)
            error[:] = 0
            energy[:] = 0
        hid[:] = False
    sums[4] = np.sqrt(sums[4]) if np.isfinite(sums[0]) else sums[0]


@nb.njit(nogil=True, cache=True)
def _gather(mine, sums):  # type: ignore[no-untyped-def]
    """Add the sums of a chunk to those of all; the last is the largest."""
    for k in range(4):
        sums[k] += mine[k]
    sums[4] = max(sums[4], mine[4])


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _settled(part, count, mine, edge, errors, counts):  # type: ignore[no-untyped-def]
    """Count the blocks of a clean chunk, unless one may be equal to rounding or among the worst: False then."""
    if mine[0] == 0:
        counts[0] += count
        counts[1] += count
        return True
    zeros, least, most = _spread(part.view(np.uint64), count)
    edge[0], edge[1] = ROUNDING * mine[2], errors[-1] if errors.size else np.inf
    bits = edge.view(np.uint64)
    if least < bits[0] or most > bits[1]:
        return False
    counts[0] += count
    counts[1] += zeros
    return True
