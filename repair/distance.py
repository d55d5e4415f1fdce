"""How far the weights of one checkpoint are from another's, tensor by tensor, in bounded memory.

A is the reference, B the candidate; either may be quantised, in any layout that is recognised.  The arithmetic is that
of `quant.distance`: float32 weights, float64 differences and sums.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import reduce
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.measure import Progress
from quant.distance import Distance, Operand, distance, identical
from quant.errors import CheckpointError, NumericError, RepairError
from quant.metrics import ErrorSums
from quant.quantised import Quantised
from repair.distance_pairs import Pair, Pairing, Unmatched, pair_up
from repair.distance_read import Piece, operands, piece_bytes, pieces, weights
from repair.distance_result import At, Comparison, TensorDistance, located, worst_blocks
from repair.restore_pieces import Buffered

MEMORY = 96 << 20  # bytes of weights that all threads hold at once
_OPEN = 8  # files of each side that a thread keeps open


class _Result(NamedTuple):
    distance: Distance
    worst: tuple[At, ...]
    same: bool  # found by comparing bytes: the sums of the values are missing


def compare_checkpoints(
    a: str,
    b: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    per_expert: bool = False,
    worst: int = 5,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the weights of two checkpoints (folder, shard or index file), A being the reference.

    ``include``, ``exclude``: globs of tensor names; ``per_expert``: one row for each expert of a fused tensor;
    ``worst``: blocks kept of each row; ``jobs``: threads (default: cores, at most 8).  ``progress(done, total)`` is
    called in this thread, in bytes.  Raises CheckpointError when a side is no checkpoint at all.
    """
    found = pair_up(a, b)

    def wanted(name: str) -> bool:
        return (not include or _matches(name, include)) and not _matches(name, exclude)

    with _Work(found, per_expert, worst) as work:
        pairs = [pair for pair in found.pairs if wanted(pair.ref.name)]
        tensors = work.run(pairs, jobs or min(8, os.cpu_count() or 1), progress)
        return Comparison(
            a=a,
            b=b,
            tensors=tuple(tensors),
            unmatched=tuple(u for u in (*found.unmatched, *work.unmatched) if wanted(u.tensor)),
            unread=(*found.unread, *work.unread),
            ignored=+found.ignored,
            bytes_compared=sum(_bytes(pair) for pair in pairs),
        )


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


class _Memory:
    """A number of bytes that threads share: who wants more than is left waits."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """Hold ``wanted`` bytes, all of them where more are wanted than there are."""
        wanted = min(wanted, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= wanted)
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()


class _Work:
    """Runs the pieces of all pairs on threads and puts their results together."""

    def __init__(self, found: Pairing, per_expert: bool, keep: int) -> None:
        self._found = found
        self._per_expert = per_expert
        self._keep = keep
        self._local = threading.local()
        self._memory = _Memory(MEMORY)
        self._files: list[Buffered] = []
        self._rooms: list[NDArray[np.uint8]] = []
        self.unmatched: list[Unmatched] = []
        self.unread: list[Unmatched] = []

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_: object) -> None:
        for files in self._files:
            files.close()

    def run(self, pairs: Sequence[Pair], jobs: int, progress: Progress | None) -> Iterator[TensorDistance]:
        """One distance after the other, in order; what cannot be read is put aside."""
        total, done = sum(_bytes(pair) for pair in pairs), 0
        todo = ((pair, piece) for pair in pairs for piece in pieces(pair))
        jobs = min(jobs, _useful(pairs))
        with ThreadPoolExecutor(jobs, thread_name_prefix="distance") as pool:
            results = self._results(todo, pool, 2 * jobs)
            for pair, group in groupby(results, key=lambda result: result[0]):
                parts = []
                for _, piece, future in group:
                    parts.append((piece, future))
                    done += _bytes(pair) * weights(pair, piece) // max(1, _units(pair))
                    if progress:
                        future.exception()
                        progress(done, total)
                yield from self._tensor(pair, parts)

    def _results(
        self, todo: Iterable[tuple[Pair, Piece]], pool: ThreadPoolExecutor, ahead: int
    ) -> Iterator[tuple[Pair, Piece, Future[_Result]]]:
        waiting = iter(todo)
        pending = deque((p, c, pool.submit(self._measure, p, c)) for p, c in islice(waiting, ahead))
        try:
            while pending:
                pair, piece, future = pending.popleft()
                future.exception()  # waits
                pending.extend((p, c, pool.submit(self._measure, p, c)) for p, c in islice(waiting, 1))
                yield pair, piece, future
        finally:
            for _, _, future in pending:
                future.cancel()

    def _tensor(self, pair: Pair, parts: Sequence[tuple[Piece, Future[_Result]]]) -> Iterator[TensorDistance]:
        results: list[tuple[Piece, _Result]] = []
        try:
            results = [(piece, future.result()) for piece, future in parts]
            if len({result.same for _, result in results}) > 1:  # the signal is wanted after all
                results = [(p, self._measure(pair, p, whole=True) if r.same else r) for p, r in results]
        except CheckpointError as error:
            self.unread.append(Unmatched("B", pair.ref.name, str(error)))
            return
        except (NumericError, RepairError) as error:
            self.unmatched.append(Unmatched("B", pair.ref.name, str(error)))
            return
        if not self._per_expert or pair.shape.experts == 1:
            yield self._row(pair, None, [result for _, result in results])
            return
        for expert in range(pair.shape.experts):
            yield self._row(pair, expert, [result for piece, result in results if piece.expert == expert])

    def _row(self, pair: Pair, expert: int | None, results: Sequence[_Result]) -> TensorDistance:
        regions = [r for r in pair.regions if expert is None or r.expert == expert]
        matrices = {r.matrix.ref.name: r.matrix for r in regions}
        kinds = dict.fromkeys(m.layer.format.name if m.layer else m.ref.dtype for m in matrices.values())
        return TensorDistance(
            tensor=pair.ref.name,
            shard=pair.ref.shard,
            expert=expert,
            sources=tuple(matrices),
            format=pair.layer.format.name if pair.layer else pair.ref.dtype,
            source_format=" ".join(kinds),
            experts=pair.shape.experts if expert is None else 1,
            rows=pair.shape.rows,
            columns=pair.shape.columns,
            quantised=pair.layer is not None or any(m.layer is not None for m in matrices.values()),
            found=reduce(lambda a, b: a + b, (r.distance for r in results), Distance()),
            worst=worst_blocks(pair, (at for r in results for at in r.worst), self._keep),
        )

    def _readers(self) -> tuple[Buffered, Buffered]:
        """This thread's own files: one thread may close what another reads."""
        both: tuple[Buffered, Buffered] | None = getattr(self._local, "both", None)
        if both is None:
            a, b = (Buffered(side, _OPEN, self._rooms) for side in (self._found.a, self._found.b))
            both = self._local.both = a, b
            self._files += both
        return both

    def _measure(self, pair: Pair, piece: Piece, whole: bool = False) -> _Result:
        with self._memory.taken(piece_bytes(pair, piece)):
            try:
                return self._measured(pair, piece, whole)
            finally:
                for files in self._readers():
                    files.again()

    def _measured(self, pair: Pair, piece: Piece, whole: bool) -> _Result:
        a, b = operands(pair, piece, *self._readers())
        high, wide = pair.block
        if pair.flat and not whole and _same(a, b):
            blocks = -(-len(piece.rows) // wide)
            return _Result(Distance(ErrorSums(len(piece.rows)), blocks, blocks), (), True)
        found = distance(a, b, (high, wide), self._keep)
        return _Result(found, tuple(located(pair, piece, spot) for spot in found.worst), False)


def _useful(pairs: Sequence[Pair]) -> int:
    """Threads that are worth their memory, which each keeps some of: more than four only where pieces are small."""
    largest = max((piece_bytes(pair, piece) for pair in pairs for piece in islice(pieces(pair), 1)), default=1)
    return max(4, MEMORY // max(largest, 1))


def _same(a: Operand, b: Operand) -> bool:
    if isinstance(a.weights, Quantised) or isinstance(b.weights, Quantised):
        return False
    return identical(a.weights, b.weights)


def _units(pair: Pair) -> int:
    """What the pieces of a pair add up to: its weights."""
    return pair.shape.experts * pair.shape.rows * pair.shape.columns


def _bytes(pair: Pair) -> int:
    """Stored bytes of both sides."""
    size = sum(part.nbytes for part in pair.layer.parts.values()) if pair.layer else pair.ref.nbytes
    rows = Counter[str]()
    for region in pair.regions:
        rows[region.matrix.name] += len(region.rows)
    for region in {region.matrix.name: region for region in pair.regions}.values():
        matrix = region.matrix
        held = sum(part.nbytes for part in matrix.layer.parts.values()) if matrix.layer else matrix.ref.nbytes
        high = (matrix.shape[0] if len(matrix.shape) == 3 else 1) * matrix.shape[-1 if region.transposed else -2]
        size += held * min(rows[matrix.name], high) // max(high, 1)
    return size
