"""One new shard: which tensors it holds, where their bytes come from, and the writing of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.handle import Handle, closed_on_error
from repair.make.sources import Sources
from repair.osfs import Fs
from repair.rewrite import copy
from repair.shardheader import Entry, header_bytes

_FLUSH = 64 << 20  # bytes written before they are sent to the disk


class Copy(NamedTuple):
    """Bytes of new tensor ``tensor`` from byte ``at`` on are ``length`` bytes of ``ref``, from its byte ``offset`` on.

    They are copied in the kernel and not looked at.  ``sources``: whose tensor it is.
    """

    tensor: str
    at: int
    sources: Sources
    ref: TensorRef
    offset: int
    length: int


class Fill(NamedTuple):
    """Bytes of new tensor ``tensor`` from byte ``at`` on; a view of any item size, contiguous."""

    tensor: str
    at: int
    content: bytes | memoryview


@dataclass(frozen=True)
class Row:
    """What a report says of one tensor; commands derive their own from it, of str, int, float and bool alone."""

    tensor: str


Piece = Copy | Fill | Row
Task = Callable[[], Iterator[Piece]]
"""Makes the pieces of one tensor or of several that belong together, a bounded part of them in memory at a time."""
Tick = Callable[[int], None]
"""Is told how many bytes more are written."""


@dataclass(frozen=True)
class NewShard:
    """A shard to be written: the tasks together give every byte of every tensor exactly once, in any order."""

    name: str
    entries: tuple[Entry, ...]
    tasks: tuple[Task, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    @cached_property
    def nbytes(self) -> int:
        """Size of the file; the header of ten thousand tensors takes its time."""
        return len(header_bytes(self.entries, self.metadata, self.name)) + sum(e.nbytes for e in self.entries)


def whole(tensor: str, sources: Sources, ref: TensorRef) -> Task:
    """The task that carries a tensor over as it is, under the name ``tensor``."""
    return lambda: iter([Copy(tensor, 0, sources, ref, 0, ref.nbytes)])


def put_shard(
    fs: Fs, target: Path, shard: NewShard, jobs: int = 1, tick: Tick | None = None, behind: bool = False
) -> tuple[list[Row], Handle]:
    """Write ``target``, a new file; what there is to say of its tensors, in the order of the tasks, and the open file.

    The caller syncs and closes it.  ``jobs``: tasks at work at once.  ``behind``: what was written goes to the disk
    while more is written.  RepairError, leaving the unfinished file, when the tasks do not give every byte exactly
    once, and what they raise.
    """
    raw = header_bytes(shard.entries, shard.metadata, shard.name)
    file = Handle.creating(fs, target)
    with closed_on_error(file), _Flusher(file, behind) as flusher:
        file.write(0, raw)
        writer = _Writer(shard, file, len(raw), tick, flusher)
        if tick:
            tick(len(raw))
        rows = [row for found in _run(shard.tasks, writer.carry_out, jobs) for row in found]
        writer.expect_whole()
        flusher.close()
    return rows, file


class _Flusher:
    """Has what was written go to the disk while more is written, so that the last sync has little left to do.

    Where it is off, calls come in order.  What a sync raises is raised by the next call, or by `close`.
    """

    def __init__(self, file: Handle, on: bool) -> None:
        self._file, self._waiting = file, 0
        self._thread = ThreadPoolExecutor(1) if on else None
        self._sync: Future[None] | None = None

    def wrote(self, length: int) -> None:
        """So many bytes more are written; not to be called from two threads at once."""
        self._waiting += length
        if self._thread is None or self._waiting < _FLUSH or (self._sync and not self._sync.done()):
            return
        if self._sync:
            self._sync.result()
        self._waiting, self._sync = 0, self._thread.submit(self._file.sync)

    def close(self) -> None:
        """Wait for the sync that is under way."""
        if self._sync:
            self._sync.result()

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.shutdown()


def _run(tasks: tuple[Task, ...], carry_out: Callable[[Task], list[Row]], jobs: int) -> Iterator[list[Row]]:
    """Results in the order of the tasks; with one job in this thread, so that its calls come in order."""
    if jobs == 1:
        yield from map(carry_out, tasks)
        return
    waiting = iter(tasks)
    pending: deque[Future[list[Row]]] = deque()
    with ThreadPoolExecutor(jobs) as threads:
        try:
            pending.extend(threads.submit(carry_out, task) for task in islice(waiting, 2 * jobs))
            while pending:
                yield pending.popleft().result()
                pending.extend(threads.submit(carry_out, task) for task in islice(waiting, 1))
        finally:
            for future in pending:
                future.cancel()


class _Writer:
    """Puts pieces into their places and keeps account of them."""

    def __init__(self, shard: NewShard, file: Handle, start: int, tick: Tick | None, flusher: _Flusher) -> None:
        self._shard, self._file, self._tick, self._flusher = shard, file, tick, flusher
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        self._given: dict[str, list[tuple[int, int]]] = {entry.name: [] for entry in shard.entries}
        for entry in shard.entries:
            self._places[entry.name] = (start, entry.nbytes)
            start += entry.nbytes

    def carry_out(self, task: Task) -> list[Row]:
        """Write what a task gives; its rows."""
        rows = []
        for piece in task():
            if isinstance(piece, Row):
                rows.append(piece)
                continue
            length = piece.length if isinstance(piece, Copy) else memoryview(piece.content).nbytes
            at = self._claim(piece.tensor, piece.at, length)
            if isinstance(piece, Copy):
                if piece.offset < 0 or piece.offset + length > piece.ref.nbytes:
                    raise RepairError(f"{piece.ref.shard}: {piece.ref.name[:200]}: a copy would leave the tensor")
                with piece.sources.lent(piece.ref.shard) as source:
                    copy(source, self._file, piece.ref.start + piece.offset, at, length)
            elif length:
                self._file.write(at, memoryview(piece.content).cast("B"))
            with self._lock:
                self._flusher.wrote(length)
                if self._tick:
                    self._tick(length)
        return rows

    def _claim(self, tensor: str, at: int, length: int) -> int:
        """The absolute offset of a piece, noted as given."""
        place = self._places.get(tensor)
        if place is None:
            raise RepairError(f"{self._shard.name}: {tensor[:200]} is no tensor of this shard")
        start, nbytes = place
        if min(at, length) < 0 or at + length > nbytes:
            raise RepairError(f"{self._shard.name}: {tensor[:200]}: bytes {at}..{at + length} lie outside it")
        with self._lock:
            given = self._given[tensor]
            if given and given[-1][1] == at:
                given[-1] = (given[-1][0], at + length)
            else:
                given.append((at, at + length))
        return start + at

    def expect_whole(self) -> None:
        """RepairError, naming the first tensor whose bytes were not all given, or given twice."""
        for name, given in self._given.items():
            end = 0
            for first, last in sorted(given):
                if first != end:
                    break
                end = last
            else:
                if end == self._places[name][1]:
                    continue
            raise RepairError(f"{self._shard.name}: {name[:200]}: its bytes from {end} on were not given exactly once")
