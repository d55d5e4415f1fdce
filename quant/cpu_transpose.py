"""Bytes and 16-bit words of a matrix transposed, in Numba: a square of 64-bit words at a time, in registers."""

from __future__ import annotations

from typing import TypeVar

import numba as nb
import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", np.uint8, np.uint16)
_STRIP = 32  # columns of the result that are filled together where the fast way does not fit


def transposed(table: NDArray[Item]) -> NDArray[Item]:
    """uint8 or uint16 [N, K] as contiguous [K, N].  Safe to call from several threads; ``table`` may be read-only."""
    out = np.empty((table.shape[1], table.shape[0]), table.dtype)
    put(table, out, 0)
    return out


def put(table: NDArray[Item], out: NDArray[Item], column: int) -> None:
    """Rows of ``table`` [n, K] become columns ``column`` to ``column + n`` of ``out`` [K, N], both uint8 or uint16.

    ``out`` is contiguous.  Fastest where n, N and ``column`` fill whole words of 8 bytes.  Safe to call from
    several threads for different columns.
    """
    rows, columns = table.shape
    side = 8 // table.itemsize
    whole = 0 if rows % side or column % side or out.shape[1] % side else columns // side * side
    if table.size and whole:
        turn = _eights if side == 8 else _fours
        turn(np.ascontiguousarray(table[:, :whole]).view(np.uint64), out.view(np.uint64), column // side)
    for first in range(0, rows if whole < columns else 0, _STRIP):
        part = table[first : first + _STRIP, whole:]
        out[whole:, column + first : column + first + len(part)] = part.T


@nb.njit(nogil=True, cache=True)
def _eights(table, out, start):  # type: ignore[no-untyped-def]
    """Words [n, K / 8] into words [K, N / 8], from word ``start`` of each line on: halves swap across the diagonal."""
    m1, m2, m4 = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00000000FFFFFFFF)
    n1, n2, n4 = ~m1, ~m2, ~m4
    s1, s2, s4 = np.uint64(8), np.uint64(16), np.uint64(32)
    rows, words = table.shape
    for top in range(0, rows, 64):  # a strip whose lines of the result fill a cache line each
        for j in range(words):
            for i in range(top, min(top + 64, rows), 8):
                x0, x1, x2, x3 = table[i, j], table[i + 1, j], table[i + 2, j], table[i + 3, j]
                x4, x5, x6, x7 = table[i + 4, j], table[i + 5, j], table[i + 6, j], table[i + 7, j]
                y0, y1 = (x0 & m1) | ((x1 & m1) << s1), ((x0 >> s1) & m1) | (x1 & n1)
                y2, y3 = (x2 & m1) | ((x3 & m1) << s1), ((x2 >> s1) & m1) | (x3 & n1)
                y4, y5 = (x4 & m1) | ((x5 & m1) << s1), ((x4 >> s1) & m1) | (x5 & n1)
                y6, y7 = (x6 & m1) | ((x7 & m1) << s1), ((x6 >> s1) & m1) | (x7 & n1)
                z0, z2 = (y0 & m2) | ((y2 & m2) << s2), ((y0 >> s2) & m2) | (y2 & n2)
                z1, z3 = (y1 & m2) | ((y3 & m2) << s2), ((y1 >> s2) & m2) | (y3 & n2)
                z4, z6 = (y4 & m2) | ((y6 & m2) << s2), ((y4 >> s2) & m2) | (y6 & n2)
                z5, z7 = (y5 & m2) | ((y7 & m2) << s2), ((y5 >> s2) & m2) | (y7 & n2)
                r, c = 8 * j, start + i // 8
                out[r, c], out[r + 4, c] = (z0 & m4) | (z4 << s4), (z0 >> s4) | (z4 & n4)
                out[r + 1, c], out[r + 5, c] = (z1 & m4) | (z5 << s4), (z1 >> s4) | (z5 & n4)
                out[r + 2, c], out[r + 6, c] = (z2 & m4) | (z6 << s4), (z2 >> s4) | (z6 & n4)
                out[r + 3, c], out[r + 7, c] = (z3 & m4) | (z7 << s4), (z3 >> s4) | (z7 & n4)


@nb.njit(nogil=True, cache=True)
def _fours(table, out, start):  # type: ignore[no-untyped-def]
    """Words [n, K / 4] into words [K, N / 4], likewise."""
    m2, m4 = np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00000000FFFFFFFF)
    n2, n4 = ~m2, ~m4
    s2, s4 = np.uint64(16), np.uint64(32)
    rows, words = table.shape
    for top in range(0, rows, 32):
        for j in range(words):
            for i in range(top, min(top + 32, rows), 4):
                x0, x1, x2, x3 = table[i, j], table[i + 1, j], table[i + 2, j], table[i + 3, j]
                y0, y1 = (x0 & m2) | ((x1 & m2) << s2), ((x0 >> s2) & m2) | (x1 & n2)
                y2, y3 = (x2 & m2) | ((x3 & m2) << s2), ((x2 >> s2) & m2) | (x3 & n2)
                r, c = 4 * j, start + i // 4
                out[r, c], out[r + 2, c] = (y0 & m4) | (y2 << s4), (y0 >> s4) | (y2 & n4)
                out[r + 1, c], out[r + 3, c] = (y1 & m4) | (y3 << s4), (y1 >> s4) | (y3 & n4)
