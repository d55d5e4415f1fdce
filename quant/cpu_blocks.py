"""Blocks of errors in Numba: their sums, which are exact or equal to rounding, and the worst of them."""

from __future__ import annotations

import numba as nb
import numpy as np

from quant import cpu_vectors as vectors
from quant.cpu_error import _add, _largest
from quant.distance import ROUNDING

CHUNK = 2048  # elements at a time, at most: all of a step stays in the first cache


@nb.njit(nogil=True, cache=True)
def hide(a, b, n, c, width, hid, counts):  # type: ignore[no-untyped-def]
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
def squares(d, n, width, part):  # type: ignore[no-untyped-def]
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
def measure(w, v, n, width, energies, room, part, held, sums):  # type: ignore[no-untyped-def]
    """Squared errors of the blocks into ``part``, with ``energies`` their squares of v into ``held``; how many.

    ``sums`` grow by the four sums of `_add`, its last becomes the largest squared difference.
    """
    if n % 16 or width % 16:
        _add(w, v, n, room, sums)
        size = room.view(np.int64)
        size[n] = _largest(size, n, np.int64(0))
        sums[4] = max(sums[4], room[n] * room[n])
        if energies:
            squares(v, n, width, held)
        return squares(room, n, width, part)
    if width == 16:
        if energies:
            vectors.errors(w, v, n // 16, part, held, sums)  # type: ignore[call-arg]
        else:
            vectors.errors(w, v, n // 16, part, None, sums)  # type: ignore[call-arg]
        return n // 16
    if energies:
        vectors.errors(w, v, n // 16, room, room[CHUNK:], sums)  # type: ignore[call-arg]
        _join(room[CHUNK:], n // 16, width // 16, held)
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
def finish(part, held, count, hid, row, column, width, counts, errors, spots):  # type: ignore[no-untyped-def]
    """Count ``count`` whole blocks of errors ``part`` and energies ``held``; keep those that are among the worst."""
    exact, near, over = 0, 0, False
    least = errors[-1] if errors.size else np.inf
    for k in range(count):
        shown = not hid[k]
        exact += shown & (part[k] == 0)
        near += shown & (part[k] != 0) & (part[k] <= ROUNDING * held[k])
        over |= not part[k] <= least
    counts[0] += count
    counts[1] += exact
    counts[2] += near
    for k in range(count if over and errors.size else 0):
        error = part[k] if np.isfinite(part[k]) else np.inf
        if error > errors[-1]:
            _keep(error, row, column + k * width, errors, spots)


@nb.njit(nogil=True, cache=True)
def gather(mine, sums):  # type: ignore[no-untyped-def]
    """Add the sums of a chunk to those of all; the last is the largest."""
    for k in range(4):
        sums[k] += mine[k]
    sums[4] = max(sums[4], mine[4])


@nb.njit(nogil=True, cache=True, error_model="numpy")
def settled(part, count, mine, edge, errors, counts):  # type: ignore[no-untyped-def]
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
