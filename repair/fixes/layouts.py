"""Tensors in another order of bytes, made a strip at a time: what is written anew is never held whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from auditor.formats.base import ceil_div
from repair.content import Computed

STRIP = 32 << 20  # bytes of the new tensor that are held
_READ = 1 << 20
Fetch = Callable[[int, int], bytes]  # ``length`` bytes from byte ``at`` of the stored tensor


def turned(fetch: Fetch, rows: int, columns: int, strip: int = STRIP) -> Computed:
    """Bytes [rows, columns] as [columns, rows].  Each strip of the new tensor reads all of the stored one once."""
    height = max(1, strip // max(1, rows))
    held: tuple[int, NDArray[np.uint8]] = (-1, np.empty(0, np.uint8))

    def lines(first: int) -> NDArray[np.uint8]:
        last = min(first + height, columns)
        out = np.empty((last - first, rows), np.uint8)
        step = max(1, _READ // columns)
        for row in range(0, rows, step):
            count = min(step, rows - row)
            block = np.frombuffer(fetch(row * columns, count * columns), np.uint8).reshape(count, columns)
            out[:, row : row + count] = block[:, first:last].T
        return out.reshape(-1)

    def make(start: int, length: int) -> bytes:
        nonlocal held
        parts, end = [], start + length
        while start < end:
            first = start // (height * rows) * height
            if held[0] != first:
                held = (first, lines(first))
            skip = start - first * rows
            part = held[1][skip : skip + end - start]
            parts.append(part.tobytes())
            start += part.size
        return b"".join(parts)

    return Computed(rows * columns, make)


def unswizzled(fetch: Fetch, experts: int, rows: int, columns: int) -> Computed:
    """Scales [experts, rows, columns] out of the kernel's order, in which they are padded to 128 rows and 4 columns.

    The kernel's order is reshape(M/128, 4, 32, G/4, 4).permute(0, 3, 2, 1, 4): 128 rows lie together.
    """
    high, wide = ceil_div(rows, 128), ceil_div(columns, 4)
    band = wide * 512

    def make(start: int, length: int) -> bytes:
        if not length:
            return b""
        at, last = start // columns, ceil_div(start + length, columns)
        skip, parts = start - at * columns, []
        while at < last:
            expert, row = divmod(at, rows)
            stop = min(last, expert * rows + min(rows, (row // 128 + 1) * 128))
            raw = np.frombuffer(fetch((expert * high + row // 128) * band, band), np.uint8)
            plain = raw.reshape(wide, 32, 4, 4).transpose(2, 1, 0, 3).reshape(128, wide * 4)
            parts.append(plain[row % 128 : row % 128 + stop - at, :columns].tobytes())
            at = stop
        return b"".join(parts)[skip : skip + length]

    return Computed(experts * rows * columns, make)
