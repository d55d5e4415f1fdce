"""What a repair does to the weights of a layer: how far they move, predicted from scales and codes.

The dequantised weights depend on a block's scale byte and its codes only, so the sum of the squared codes over all
blocks with one scale byte is all that is needed: the errors below are exact, not estimates.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.layer import Geometry, QuantizedLayer
from auditor.source import opened
from auditor.tensorref import TensorRef
from quant.codes import E2M1, E4M3
from quant.metrics import ErrorSums

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Read = Callable[[TensorRef, int, int], bytes]
SOURCE = "the source"  # what errors are relative to where it was given
BLOCKS = 1 << 17  # looked at together
MEASURED = 512 << 20  # bytes of codes that are read for errors weighted by them; then all blocks count the same
_THREADS = 4
_AHEAD = 128  # chunks that wait to be summed: 16 MB of scales, and of codes where those are planned anew


@dataclass(frozen=True)
class Effect:
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


Effects = Callable[[], tuple[Effect, ...]]  # called once, when all is planned


@dataclass(frozen=True)
class Energy:
    """Blocks of a layer by scale byte: the sum of their squared codes; float64 [256], exact."""

    squares: NDArray[np.float64]

    def error(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
        """Relative error when a block with scale byte b goes from step ``old[b]`` to ``new[b]``, float64 [256]."""
        live = self.squares > 0
        moved = math.fsum(self.squares[live] * (new[live] - old[live]) ** 2)
        held = math.fsum(self.squares[live] * old[live] ** 2)
        return math.sqrt(moved / held) if held else 0.0


class Tally:
    """Sums codes on threads beside the one that plans.  ``most``: bytes of codes that are read in all."""

    def __init__(self, most: int = MEASURED) -> None:
        """No thread is started yet."""
        self._left = most
        self._room = threading.Semaphore(_AHEAD)
        self._pool: ThreadPoolExecutor | None = None

    def begin(
        self, layer: QuantizedLayer, read: Read, rows: tuple[int, int] | None = None, stored: Path | None = None
    ) -> Callable[[], Energy] | None:
        """Sum the layer's blocks, of all rows of scales or of [first, last); what comes back waits for their energy.

        Blocks count as ``read`` gives them now; where the codes are those of the shard ``stored``, which is not
        written before the energy is there, they are read from it on the thread that sums them.  None where shapes do
        not agree, and once ``most`` bytes of codes were asked for.
        """
        geometry = layer.geometry()
        if geometry is None:
            return None
        first, last = rows or (0, geometry.rows)
        self._left -= (last - first) * geometry.inner * geometry.unit
        if self._left < 0:
            return None
        sums = []
        for start, count in _chunks(geometry, first, last):
            scales, ref = read(layer.scales, start, count), layer.codes
            at, length = start * geometry.unit, count * geometry.unit
            codes = read(ref, at, length) if stored is None else _Place(stored, ref.start + at, length)
            sums.append(self._submit(scales, codes, geometry))

        def wait() -> Energy:
            total = np.zeros(256)
            for one in sums:
                total += one.result()
            return Energy(total / 4)

        return wait

    def _submit(self, scales: bytes, codes: bytes | _Place, geometry: Geometry) -> Future[NDArray[np.float64]]:
        """Sum a chunk when a thread is free; waits while too many chunks do."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        self._room.acquire()
        future = self._pool.submit(_squares, scales, codes, geometry)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Let the threads go; what was begun is finished first."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class _Place(NamedTuple):
    """Bytes of a file that a thread reads when their turn comes."""

    path: Path
    at: int
    length: int

    def read(self) -> bytes:
        with opened(self.path) as file:
            return file.read(self.at, self.length)


def _chunks(geometry: Geometry, first: int, last: int) -> Iterator[tuple[int, int]]:
    """(first block, count) of some blocks at a time, of [first, last) rows of scales."""
    step = max(1, BLOCKS // geometry.inner)
    for row in range(first, last, step):
        yield row * geometry.inner, min(step, last - row) * geometry.inner


def _squares(scales: bytes, codes: bytes | _Place, geometry: Geometry) -> NDArray[np.float64]:
    """Squared codes in quarters, summed by scale byte; float64 [256], exact."""
    raw = codes if isinstance(codes, bytes) else codes.read()
    sums = _sums(raw, geometry.unit, geometry.inner)
    return np.asarray(np.bincount(np.frombuffer(scales, np.uint8), weights=sums, minlength=256), np.float64)


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


def counts(layer: QuantizedLayer, read: Read, rows: tuple[int, int] | None = None) -> NDArray[np.int64]:
    """How many block scales of a layer have each byte, int64 [256]; of all rows of scales or of [first, last)."""
    geometry = layer.geometry()
    inner = geometry.inner if geometry else 1
    first, last = (rows[0] * inner, rows[1] * inner) if rows else (0, layer.scales.nbytes)
    total = np.zeros(256, np.int64)
    for at in range(first, last, 1 << 17):
        part = np.frombuffer(read(layer.scales, at, min(1 << 17, last - at)), np.uint8)
        total += np.bincount(part, minlength=256)
    return total


def steps(global_scale: float, divides: bool) -> NDArray[np.float64]:
    """What one code step is worth under each scale byte, float64 [256]; NaN bytes count as 0."""
    values = _values()
    return values / global_scale if divides else values * global_scale


@cache
def _values() -> NDArray[np.float64]:
    return np.nan_to_num(E4M3.values.astype(np.float64), nan=0.0)
