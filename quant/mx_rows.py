"""MXFP4 tensors read piece by piece, and the range of their live blocks, told from scales first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quant import mx
from quant.errors import NumericError
from quant.mx_window import Blocks

_CODES = 1 << 19  # bytes of codes looked at at once
_SCALES = 1 << 24  # bytes of codes whose scales are looked at at once
_GAP = 4  # rows that are not asked for are read along up to here
_LEVELS = 3  # exponents without a live block that are looked at one by one, before all codes are


class Rows(Protocol):
    """An MXFP4 tensor seen as rows, read piece by piece.  ``blocks``: blocks of 32 in a row; ``name``: for messages."""

    name: str
    rows: int
    blocks: int

    def scales(self, first: int, last: int) -> NDArray[np.uint8]:
        """E8M0 codes of rows ``first`` to ``last``, uint8 [rows, blocks]."""

    def packed(self, first: int, last: int) -> NDArray[np.uint8]:
        """Their codes, uint8 [rows, 16 * blocks]."""

    def place(self, row: int, block: int) -> str:
        """Where a scale lies in the stored tensor, for messages: its index, and its offset in a file."""


def chunks(part: Rows, nbytes: int = _CODES, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of rows from ``begin`` to ``end`` of about this many bytes of codes; one shape, one way of cutting."""
    step, end = max(1, nbytes // max(1, 16 * part.blocks)), part.rows if end is None else end
    return ((first, min(first + step, end)) for first in range(begin, end, step))


def survey(part: Rows) -> tuple[int, int]:
    """Smallest and largest scale code, zero blocks included.

    Raises NumericError, naming tensor and index, when a scale is 255.
    """
    low, high = 255, 0
    for first, last in chunks(part, _SCALES):
        scales = part.scales(first, last)
        if not scales.size:
            continue
        low, high = min(low, int(scales.min())), max(high, int(scales.max()))
    if high == 255:
        _refuse_nan(part)
    return low, high


def _refuse_nan(part: Rows) -> None:
    count, where = 0, ""
    for first, last in chunks(part, _SCALES):
        hits = np.argwhere(part.scales(first, last) == 255)
        if len(hits) and not where:
            where = part.place(first + int(hits[0, 0]), int(hits[0, 1]))
        count += len(hits)
    of = part.rows * part.blocks
    raise NumericError(f"{part.name}: {count} of {of} E8M0 scales are 255 (NaN), the first at {where}")


def live_range(part: Rows, low: int, high: int) -> tuple[int, int] | None:
    """Smallest and largest k of blocks with a non-zero code, from scale codes ``low`` to ``high``; None without any."""
    top = _first_live(part, high, -1)
    bottom = None if top is None else _first_live(part, low, 1)
    if top is not None and bottom is not None:
        return bottom - mx.BIAS, top - mx.BIAS
    ends = [found for first, last in chunks(part) if (found := blocks(part, first, last).range())]
    return (min(end[0] for end in ends), max(end[1] for end in ends)) if ends else None


def _first_live(part: Rows, level: int, step: int) -> int | None:
    """The first scale code from ``level`` on, upward or downward, that a live block has; None after a few without."""
    for _ in range(_LEVELS):
        beyond = []
        for first, last in chunks(part, _SCALES):
            scales = part.scales(first, last)
            if _is_live(part, first, scales, level):
                return level
            # Wrapped around, codes up to the level (or down to it) come last.
            away = scales - np.uint8((level + 1) % 256) if step > 0 else np.uint8((level - 1) % 256) - scales
            if scales.size and int(away.min()) < (255 - level if step > 0 else level):
                beyond.append(int(away.min()))
        if not beyond:
            return None
        level += step * (1 + min(beyond))
    return None


def _is_live(part: Rows, first: int, scales: NDArray[np.uint8], level: int) -> bool:
    """Whether one of these rows, counted from ``first``, has a live block under scale code ``level``."""
    hits = scales == level
    row = int(hits.argmax()) // part.blocks
    if not hits[row].any():
        return False
    if _any_live(part.packed(first + row, first + row + 1), hits[row : row + 1]):
        return True  # as good as always
    rows = np.flatnonzero(hits.any(1))[1:]
    breaks = np.flatnonzero(np.diff(rows) > _GAP) + 1
    most = max(1, _CODES // (16 * part.blocks))
    for run in np.split(rows, breaks) if rows.size else ():
        for begin in range(int(run[0]), int(run[-1]) + 1, most):
            end = min(begin + most, int(run[-1]) + 1)
            if _any_live(part.packed(first + begin, first + end), hits[begin:end]):
                return True
    return False


def _any_live(packed: NDArray[np.uint8], hits: NDArray[np.bool_]) -> bool:
    """Whether one of the marked blocks has a non-zero code."""
    return bool((packed.reshape(-1, 16)[hits.reshape(-1)] & np.uint8(0x77)).any())


def blocks(part: Rows, first: int, last: int, scales: NDArray[np.uint8] | None = None) -> Blocks:
    """Rows ``first`` to ``last``, cut into blocks; ``scales``: theirs, where they were read already."""
    return Blocks(part.packed(first, last), part.scales(first, last) if scales is None else scales)
