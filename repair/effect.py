"""What a repair does to the weights of a layer: how far they move, predicted from scales and codes.

The dequantised weights depend on a block's scale byte and its codes only, so the sum of the squared codes over all
blocks with one scale byte is all that is needed: errors of small layers are exact.  Of larger ones the scales tell how
many blocks have which byte, and some blocks from all over the layer what squared codes go with it; see `Tally`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.layer import Geometry, QuantizedLayer
from auditor.tensorref import TensorRef
from quant.codes import E2M1, E4M3
from quant.metrics import ErrorSums

Read = Callable[[TensorRef, int, int], bytes]
Announce = Callable[[TensorRef, Iterable[tuple[int, int]]], None]
Rows = tuple[int, int]  # of scales: [first, last)
SOURCE = "the source"  # what errors are relative to where it was given
SAMPLE, RUNS = 1 << 13, 4  # blocks of one layer whose codes stand for all, in so many runs
SCALES = 1 << 15  # block scales of one layer that stand for all
STRONG = 16  # scale bytes below the largest: two octaves, where blocks have a sixteenth of its energy
TOGETHER = 1 << 17  # blocks that are looked at together
_CHUNK = 1 << 20
_DOUBT = 3  # blocks: where fewer have a scale byte the mean of all blocks counts for more than theirs
MEASURED = 512 << 20  # bytes of codes that are read for errors weighted by them; then all blocks count the same


class Effect(NamedTuple):
    """How a layer's weights change.  ``before`` and ``after`` are errors relative to ``of``: root of Σ(w-v)² / Σw².

    None where the error has no number (NaN before, content lost).  ``note`` says what else there is to say.
    """

    layer: str
    of: str
    before: float | None
    after: float | None
    note: str = ""


def against_source(layer: str, before: ErrorSums, after: ErrorSums) -> Effect:
    """The errors of a layer against its source; no number where a weight is not finite."""
    root = [math.sqrt(sums.relative) if math.isfinite(sums.relative) else None for sums in (before, after)]
    decibels = ["NaN" if math.isnan(sums.squared) else f"{sums.sqnr:.1f} dB" for sums in (before, after)]
    return Effect(layer, SOURCE, root[0], root[1], f"SQNR {decibels[0]} -> {decibels[1]}")


class Energy(NamedTuple):
    """Blocks of a layer by scale byte: the sum of their squared codes, or what is proportional to it; float64 [256].

    The codes of ``taken`` of ``blocks`` blocks were looked at; exact where those are all.
    """

    squares: NDArray[np.float64]
    taken: int = 0
    blocks: int = 0

    def error(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
        """Relative error when a block with scale byte b goes from step ``old[b]`` to ``new[b]``, float64 [256]."""
        live = self.squares > 0
        squares, old, new = self.squares[live], old[live], new[live]
        moved, held = math.fsum((squares * (new - old) ** 2).tolist()), math.fsum((squares * old**2).tolist())
        return math.sqrt(moved / held) if held else 0.0


class Tally:
    """Sums codes.  ``most``: bytes of codes that are read in all; ``sample``: blocks that stand for a layer of more."""

    def __init__(self, most: int = MEASURED, sample: int = SAMPLE) -> None:
        """Nothing is read yet."""
        self._left, self._sample = most, sample

    def energy(
        self, layer: QuantizedLayer, read: Read, rows: Rows | None = None, announce: Announce | None = None
    ) -> Energy | None:
        """Squared codes of the layer by scale byte, of all rows of scales or of [first, last), as ``read`` gives them.

        Of a layer with more blocks than stand for it the codes of some runs of rows are read, evenly spread, and their
        mean squares by scale byte are weighted by how many blocks of the whole have that byte: what a layer's few
        strong rows weigh is known from their scales, wherever the runs lie.  ``announce`` is told before which (first
        byte, length) of the codes will be read.

        None where shapes do not agree, where the runs hold no code but zeros, and once ``most`` bytes of codes were
        asked for.
        """
        geometry = layer.geometry()
        if geometry is None:
            return None
        first, last = rows or (0, geometry.rows)
        inner, wide = geometry.inner, geometry.inner * geometry.unit
        runs = list(sample(geometry, first, last, self._sample))
        taken, blocks = sum(count for _, count in runs) * inner, (last - first) * inner
        self._left -= taken * geometry.unit
        if self._left < 0:
            return None
        if announce is not None and len(runs) > 1:
            announce(layer.codes, [(start * wide, count * wide) for start, count in runs])
        part_of = _scales(layer.scales, read, first * inner, last * inner)
        squares, seen = np.zeros(256), np.zeros(256)
        for part in _portions(runs, inner):
            scales = np.frombuffer(b"".join(part_of(start * inner, count * inner) for start, count in part), np.uint8)
            codes = b"".join(read(layer.codes, start * wide, count * wide) for start, count in part)
            squares += np.bincount(scales, weights=_sums(codes, geometry.unit, inner), minlength=256)
            if taken < blocks:
                seen += np.bincount(scales, minlength=256)
        if taken == blocks:
            return Energy(squares / 4, taken, blocks)
        usual = squares.sum() / seen.sum()
        if not usual:
            return None
        mean = (squares + _DOUBT * usual) / (seen + _DOUBT)
        return Energy(mean * _spread(part_of, first * inner, last * inner), taken, blocks)


def sample(geometry: Geometry, first: int, last: int, most: int) -> Iterator[tuple[int, int]]:
    """(first row, count) of runs of rows of scales that stand for [first, last).

    All of it where it has no more than ``most`` blocks; of fewer than RUNS rows never a part.
    """
    count = max(1, most // RUNS // max(1, geometry.inner))
    if last - first <= RUNS * count:
        if last > first:
            yield first, last - first
        return
    for number in range(RUNS):
        yield first + (last - first - count) * number // (RUNS - 1), count


def _portions(runs: Iterable[tuple[int, int]], inner: int) -> Iterator[list[tuple[int, int]]]:
    """The runs, cut and put together to portions of at most TOGETHER blocks (a row where that has more)."""
    most = max(1, TOGETHER // max(1, inner))
    part: list[tuple[int, int]] = []
    room = most
    for start, count in runs:
        while count:
            taken = min(count, room)
            part.append((start, taken))
            start, count, room = start + taken, count - taken, room - taken
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part


def _scales(ref: TensorRef, read: Read, first: int, last: int) -> Callable[[int, int], bytes]:
    """What gives ``length`` block scales from number ``at`` on, of [first, last); few are read at once, and kept."""
    if last - first > _CHUNK:
        return lambda at, length: read(ref, at, length)
    held = read(ref, first, last - first)
    return lambda at, length: held[at - first : at - first + length]


def _spread(scales: Callable[[int, int], bytes], first: int, last: int) -> NDArray[np.float64]:
    """About how many of the block scales [first, last) have which byte, float64 [256].

    Every so many are counted (an odd number of steps, which meets all columns), and each of the strong ones where those
    are few.
    """
    step = max(1, (last - first) // SCALES) | 1 if last - first > SCALES else 1
    total = np.zeros(256)
    for at in range(first, last, _CHUNK):
        part = np.frombuffer(scales(at, min(_CHUNK, last - at)), np.uint8)
        every = slice((first - at) % step, None, step)
        some = part[every]
        if step > 1:
            strong = part >= max(1, int(part.max()) - STRONG)
            if np.count_nonzero(strong) * 8 <= part.size:
                total += np.bincount(part[strong], minlength=256)
                some = some[~strong[every]]
        total += step * np.bincount(some, minlength=256)
    return total


@cache
def _pairs() -> NDArray[np.uint16]:
    """Squared codes in quarters of both nibbles of each byte: at most 288; uint16 [256]."""
    one = np.array([int(4 * float(value) ** 2) for value in E2M1.values], np.uint16)
    return np.asarray((one[:, None] + one).reshape(-1))


@cache
def _quads() -> NDArray[np.uint16]:
    """The same of the four nibbles of each two bytes: at most 576; uint16 [65536]."""
    return np.asarray((_pairs()[:, None] + _pairs()).reshape(-1))


def _sums(codes: bytes, unit: int, inner: int) -> NDArray[np.uint64]:
    """Sum of the squared codes of each block, in quarters; uint64 [blocks], exact."""
    if inner > 1 or unit % 8:
        both = np.take(_pairs(), np.frombuffer(codes, np.uint8))
        return np.asarray(both.reshape(-1, unit, inner).sum(axis=1, dtype=np.uint64).reshape(-1))
    lanes = np.take(_quads(), np.frombuffer(codes, np.uint16)).view(np.uint64)
    # The sum of four 16-bit lanes, at most 2304, comes to lie in the topmost.
    words = (lanes * np.uint64(0x0001000100010001)) >> np.uint64(48)
    return words if unit == 8 else np.asarray(words.reshape(-1, unit // 8).sum(axis=1))


def counts(layer: QuantizedLayer, read: Read, rows: Rows | None = None) -> NDArray[np.int64]:
    """How many block scales of a layer have each byte, int64 [256]; of all rows of scales or of [first, last)."""
    geometry = layer.geometry()
    inner = geometry.inner if geometry else 1
    first, last = (rows[0] * inner, rows[1] * inner) if rows else (0, layer.scales.nbytes)
    total = np.zeros(256, np.int64)
    for at in range(first, last, _CHUNK):
        part = np.frombuffer(read(layer.scales, at, min(_CHUNK, last - at)), np.uint8)
        total += np.bincount(part, minlength=256)
    return total


def steps(global_scale: float, divides: bool) -> NDArray[np.float64]:
    """What one code step is worth under each scale byte, float64 [256]; NaN bytes count as 0."""
    values = _values()
    return values / global_scale if divides else values * global_scale


@cache
def _values() -> NDArray[np.float64]:
    return np.nan_to_num(E4M3.values.astype(np.float64), nan=0.0)
