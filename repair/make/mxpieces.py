"""The pieces of a cast tensor: codes and scales as they are stored, apart for gate and up, or transposed.

Codes that stay as they are and where they are in relation to each other are copied by the kernel and not looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.mx_plan import Plan
from quant.mx_rows import chunks
from repair.make.mxrows import TensorRows
from repair.make.shard import Copy, Fill, Piece
from repair.make.sources import Sources

_STEP = 1 << 19  # bytes of codes in memory at once: they stay in a core's cache
_LONG = 1 << 24  # bytes of codes that are copied at once
_PANEL = 1 << 24  # the same, where an expert is transposed


@dataclass(frozen=True)
class Names:
    """The new tensors of one weight, and the byte of each at which the rows at hand begin."""

    codes: str
    scales: str
    codes_at: int = 0
    scales_at: int = 0


def in_place(rows: TensorRows, plan: Plan, sources: Sources, to: Names) -> Iterator[Piece]:
    """Rows in the order in which they are stored."""
    width = 16 * rows.blocks
    for first, last in chunks(rows, _LONG):
        scales = rows.scales(first, last)
        if plan.keeps(scales):
            length = (last - first) * width
            yield Copy(to.codes, to.codes_at + first * width, sources, rows.codes, rows.offset(first), length)
            yield Fill(to.scales, to.scales_at + first * 2 * rows.blocks, _bytes(plan.new_scales(scales)))
            continue
        for begin, end in chunks(rows, _STEP, first, last):
            packed, new = plan.carried_out(rows, begin, end)
            yield Fill(to.codes, to.codes_at + begin * width, _bytes(packed))
            yield Fill(to.scales, to.scales_at + begin * 2 * rows.blocks, _bytes(new))


def apart(rows: TensorRows, plan: Plan, even: Names, odd: Names) -> Iterator[Piece]:
    """Rows 0, 2, 4, … into one weight and 1, 3, 5, … into another; an even number of rows.

    What is given lies in memory that the next piece of this thread is laid in.
    """
    pairs, width = max(1, _STEP // (32 * rows.blocks)), 16 * rows.blocks
    for first in range(0, rows.rows, 2 * pairs):
        last = min(first + 2 * pairs, rows.rows)
        packed, new = _carried_out(rows, plan, first, last)
        for start, to in ((0, even), (1, odd)):
            half = _scratch("half", (last - first) // 2, width)
            np.copyto(half, packed[start::2])
            yield Fill(to.codes, to.codes_at + first // 2 * width, _bytes(half))
            yield Fill(to.scales, to.scales_at + first // 2 * 2 * rows.blocks, _bytes(new[start::2]))


def across(rows: TensorRows, plan: Plan, to: Names) -> Iterator[Piece]:
    """Rows [N, K / 2] as columns [K / 2, N], and their scales likewise.

    What is given lies in memory that the next piece of this thread is laid in.
    """
    for begin, end in chunks(rows, _PANEL):
        made = [(_scratch("codes", 16 * rows.blocks, end - begin), to.codes, to.codes_at)]
        made.append((_scratch("scales", 2 * rows.blocks, end - begin), to.scales, to.scales_at))
        for first, last in _by_eights(rows, begin, end):
            for table, (turned, _, _) in zip(_carried_out(rows, plan, first, last), made, strict=True):
                _put(table, turned, first - begin)
        for turned, tensor, at in made:
            if end - begin == rows.rows:
                yield Fill(tensor, at, _bytes(turned))
                continue
            for number, line in enumerate(turned):
                yield Fill(tensor, at + number * rows.rows + begin, _bytes(line))
    rows.forget()


def _carried_out(rows: TensorRows, plan: Plan, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """As `Plan.carried_out`; codes that stay as they are, in memory that is used again."""
    scales = rows.scales(first, last)
    if not plan.keeps(scales):
        return plan.carried_out(rows, first, last)
    packed = _scratch("packed", last - first, 16 * rows.blocks)
    rows.packed_into(first, last, packed)
    return packed, plan.new_scales(scales)


def _by_eights(rows: TensorRows, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that stay in a core's cache; all but the last a multiple of 8 long."""
    step = max(8, _STEP // (16 * rows.blocks) // 8 * 8)
    return ((first, min(first + step, end)) for first in range(begin, end, step))


def _put(table: NDArray[np.uint8], turned: NDArray[np.uint8], column: int) -> None:
    from quant import cpu_transpose  # Numba: imported where it is first used

    cpu_transpose.put(table, turned, column)


_LAID_BY = threading.local()


def _scratch(use: str, height: int, width: int) -> NDArray[np.uint8]:
    """Memory [height, width] that this thread uses again and again: to get new pages costs as much as to fill them."""
    held: NDArray[np.uint8] | None = getattr(_LAID_BY, use, None)
    if held is None or held.size < height * width:
        held = np.empty(height * width, np.uint8)
        setattr(_LAID_BY, use, held)
    return held[: height * width].reshape(height, width)


def _bytes(table: NDArray[np.uint8]) -> memoryview:
    return np.ascontiguousarray(table).reshape(-1).data
