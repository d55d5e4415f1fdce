"""The pieces of a cast tensor: codes and scales as they are stored, apart for gate and up, or transposed.

Codes that stay as they are and where they are in relation to each other are copied by the kernel and not looked at.
"""

from __future__ import annotations

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
    """Rows 0, 2, 4, … into one weight and 1, 3, 5, … into another; an even number of rows."""
    pairs = max(1, _STEP // (32 * rows.blocks))
    for first in range(0, rows.rows, 2 * pairs):
        packed, new = plan.carried_out(rows, first, min(first + 2 * pairs, rows.rows))
        for start, to in ((0, even), (1, odd)):
            yield Fill(to.codes, to.codes_at + first // 2 * 16 * rows.blocks, _bytes(packed[start::2]))
            yield Fill(to.scales, to.scales_at + first // 2 * 2 * rows.blocks, _bytes(new[start::2]))


def across(rows: TensorRows, plan: Plan, to: Names) -> Iterator[Piece]:
    """Rows [N, K / 2] as columns [K / 2, N], and their scales likewise."""
    for first, last in chunks(rows, _PANEL):
        packed, new = plan.carried_out(rows, first, last)
        yield from _columns(packed, to.codes, to.codes_at, first, rows.rows)
        yield from _columns(new, to.scales, to.scales_at, first, rows.rows)


def _columns(table: NDArray[np.uint8], tensor: str, at: int, first: int, rows: int) -> Iterator[Piece]:
    from quant import cpu_transpose  # Numba: imported where it is first used

    turned = cpu_transpose.transposed(table)
    if len(table) == rows:
        yield Fill(tensor, at, _bytes(turned))
        return
    for number, line in enumerate(turned):
        yield Fill(tensor, at + number * rows + first, _bytes(line))


def _bytes(table: NDArray[np.uint8]) -> memoryview:
    return np.ascontiguousarray(table).reshape(-1).data
