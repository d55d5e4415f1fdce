"""Read what a scan needs, once and in file order, and count what is in it.

The work is cut into units: small picklable values that any `concurrent.futures.Executor` can run, on threads
here or on machines elsewhere.  A unit reads its ranges through one small buffer and returns statistics.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from auditor.probes import CHUNK, Probe, Stats, measure, measure_one
from auditor.source import LocalFile, opened
from quant.errors import CheckpointError

if TYPE_CHECKING:
    from concurrent.futures import Executor

UNIT = 32 << 20  # bytes of one unit of work: also the step of a progress bar
GAP = 512  # unwanted bytes read rather than seeking past them
_INLINE = 256 << 20  # below this much threads cost more than they save: most calls are short, and take turns

Progress = Callable[[int, int], None]
Spans = list[tuple[int, int]]  # (first byte, byte after the last) in a file
_LOCAL = threading.local()  # one read buffer per worker thread


class Task(NamedTuple):
    """A range of one tensor to measure.  ``at``: byte offset of the range inside the tensor."""

    tensor: str
    dtype: str
    start: int
    nbytes: int
    at: int
    probe: Probe
    unit: int = 0  # bytes of packed codes per block, and how many blocks lie side by side
    inner: int = 1

    @property
    def grain(self) -> int:
        """Cuts fall on multiples of this many bytes, so that no element and no block is split."""
        if self.inner == 1:
            return 64
        block = max(1, self.unit * self.inner)
        return block * -(-64 // block)


class Unit(NamedTuple):
    """Tasks in one file, ascending and disjoint: everything a worker needs."""

    path: str
    tasks: tuple[Task, ...]


class UnitResult(NamedTuple):
    """Statistics by tensor name and range start, bytes read, what went wrong by tensor, what was read between them."""

    stats: list[tuple[str, int, Stats]]
    bytes_read: int
    failed: dict[str, str]
    between: Spans


@dataclass
class Measured:
    """What was read: statistics by tensor, bytes, and the tensors that could not be read.

    ``between``: unwanted ranges among those bytes, by path.
    """

    stats: dict[str, Stats] = field(default_factory=dict)
    bytes_read: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    between: dict[str, Spans] = field(default_factory=dict)


def units(path: Path, tasks: Iterable[Task]) -> Iterator[Unit]:
    """Cut the tasks of one file into units of about UNIT bytes; long tensors are spread over several."""
    batch: list[Task] = []
    room = UNIT
    for task in sorted(tasks, key=lambda t: (t.start, t.nbytes)):  # empty tensors before their neighbour
        rest = task
        while rest.nbytes > room:
            cut = room - room % rest.grain
            if cut:
                batch.append(rest._replace(nbytes=cut))
                rest = rest._replace(start=rest.start + cut, nbytes=rest.nbytes - cut, at=rest.at + cut)
            elif rest.grain > UNIT:  # one row of blocks is larger than a unit: it is read whole, unexamined
                rest = rest._replace(unit=0, inner=1)
            if batch:
                yield Unit(str(path), tuple(batch))
            batch, room = [], UNIT
        if rest.nbytes or not task.nbytes:
            batch.append(rest)
            room -= rest.nbytes
    if batch:
        yield Unit(str(path), tuple(batch))


def run_unit(unit: Unit) -> UnitResult:
    """Read and measure one unit.  Never raises on a bad file: the tensors it could not read are named."""
    result = UnitResult([], 0, {}, [])
    read = 0
    try:
        with opened(Path(unit.path)) as file:
            for fill in _fills(unit.tasks):
                read += _run_fill(file, fill, result)
    except CheckpointError as error:
        result.failed.update((task.tensor, str(error)) for task in unit.tasks)
    return result._replace(bytes_read=read)


@dataclass(slots=True)
class _Fill:
    """One read of at most CHUNK bytes (more where a grain is larger), and the ranges it serves."""

    start: int
    nbytes: int
    parts: list[Task]
    between: Spans = field(default_factory=list)


def _fills(tasks: Iterable[Task]) -> Iterator[_Fill]:
    fill: _Fill | None = None
    for task in tasks:
        rest = task
        while True:
            if fill is not None:
                gap = rest.start - (fill.start + fill.nbytes)
                room = CHUNK - fill.nbytes - gap
                if not 0 <= gap <= GAP or (room < rest.nbytes and room < rest.grain):
                    yield fill
                    fill = None
            if fill is None:
                fill, gap, room = _Fill(rest.start, 0, []), 0, max(CHUNK, rest.grain)
            if gap:
                fill.between.append((rest.start - gap, rest.start))
            if rest.nbytes <= room:
                fill.parts.append(rest)
                fill.nbytes += gap + rest.nbytes
                break
            length = room - room % rest.grain
            fill.parts.append(rest._replace(nbytes=length))
            fill.nbytes += gap + length
            rest = rest._replace(start=rest.start + length, nbytes=rest.nbytes - length, at=rest.at + length)
    if fill is not None:
        yield fill


def _run_fill(file: LocalFile, fill: _Fill, result: UnitResult) -> int:
    """Bytes read.  Where a read fails, its ranges are read one by one: only those that are hit are lost."""
    buffer = _buffer(fill.nbytes)
    try:
        file.read_into(fill.start, memoryview(buffer)[: fill.nbytes])
    except CheckpointError as error:
        if len(fill.parts) > 1:
            return sum(_run_fill(file, _Fill(part.start, part.nbytes, [part]), result) for part in fill.parts)
        result.failed.setdefault(fill.parts[0].tensor, str(error))
        return 0
    result.between.extend(fill.between)
    for part in fill.parts:
        offset = part.start - fill.start
        if part.nbytes == 4 and part.at == 0 and part.probe is Probe.FLOATS:
            one = measure_one(bytes(buffer[offset : offset + 4]), part.dtype)
            if one is not None:
                result.stats.append((part.tensor, 0, one))
                continue
        chunk = np.frombuffer(buffer, np.uint8, part.nbytes, offset)
        stats = measure(part.probe, chunk, part.at, part.dtype, part.unit, part.inner)
        last = result.stats[-1] if result.stats else None
        if last is not None and last[0] == part.tensor:
            last[2].merge(stats)  # type: ignore[arg-type]  # one tensor, one probe, one kind of statistics
        else:
            result.stats.append((part.tensor, part.at, stats))
    return fill.nbytes


def _buffer(nbytes: int) -> bytearray:
    if nbytes > CHUNK:
        return bytearray(nbytes)  # rare, and let go at once
    buffer: bytearray | None = getattr(_LOCAL, "buffer", None)
    if buffer is None:
        buffer = _LOCAL.buffer = bytearray(CHUNK)
    return buffer


def run(
    work: Mapping[Path, list[Task]],
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measure tasks by file, on ``executor`` where given, else on ``jobs`` threads (default: cores, at most 8).

    ``progress(done, total)`` is called in this thread after every unit, in bytes.
    """
    todo = [unit for path in sorted(work) for unit in units(path, work[path])]
    total = sum(task.nbytes for tasks in work.values() for task in tasks)
    measured = Measured()
    done = 0
    for unit, result in zip(todo, _results(todo, total, executor, jobs), strict=True):
        done += sum(task.nbytes for task in unit.tasks)
        measured.bytes_read += result.bytes_read
        measured.failed.update(result.failed)
        if result.between:
            measured.between.setdefault(unit.path, []).extend(result.between)
        for tensor, _, stats in result.stats:
            known = measured.stats.get(tensor)
            if known is None:
                measured.stats[tensor] = stats
            else:
                known.merge(stats)  # type: ignore[arg-type]
        if progress:
            progress(done, total)
    for tensor in measured.failed:
        measured.stats.pop(tensor, None)
    return measured


def extend(spans: Spans, first: int, end: int) -> None:
    """Add a range to others, as one with the last where they touch: what is read on and on stays one."""
    if spans and spans[-1][0] <= first <= spans[-1][1]:
        first, end = spans[-1][0], max(end, spans.pop()[1])
    spans.append((first, end))


def covered(spans: Spans) -> int:
    """How many bytes ranges cover together."""
    total = reached = 0
    for first, end in sorted(spans):
        total += max(0, end - max(first, reached))
        reached = max(reached, end)
    return total


def _results(todo: list[Unit], total: int, executor: Executor | None, jobs: int | None) -> Iterator[UnitResult]:
    """Results in the order of the units, whoever ran them: statistics of a tensor merge front to back."""
    if executor is None:
        if jobs == 1 or (jobs is None and total <= _INLINE):
            for number, unit in enumerate(todo, 1):
                for following in todo[number : number + 1]:
                    _announce(following)
                yield run_unit(unit)
            return
        jobs = jobs or min(8, os.cpu_count() or 1)
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(jobs) as threads:
            yield from _windowed(todo, threads, 2 * jobs)
        return
    yield from _windowed(todo, executor, 64)


def _announce(unit: Unit) -> None:
    """Have the system read a unit from the disk while the one before it is measured."""
    with suppress(CheckpointError), opened(Path(unit.path)) as file:
        spans: list[list[int]] = []
        for task in unit.tasks:
            if spans and task.start - spans[-1][1] <= CHUNK:
                spans[-1][1] = task.start + task.nbytes
            else:
                spans.append([task.start, task.start + task.nbytes])
        for start, end in spans:
            file.announce(start, end - start)


def _windowed(todo: list[Unit], executor: Executor, ahead: int) -> Iterator[UnitResult]:
    from collections import deque

    waiting = iter(todo)
    pending = deque(executor.submit(run_unit, unit) for unit in islice(waiting, ahead))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(executor.submit(run_unit, unit) for unit in islice(waiting, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()
