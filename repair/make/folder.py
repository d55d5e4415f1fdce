"""A new checkpoint's folder: it grows beside its name, says that it is unfinished, and can be gone on with.

``DST.incomplete`` holds, from its first moment on, UNFINISHED.json: what is being made, from what, with which options.
Each shard is written under another name, synced, renamed, and then recorded in a file of its own; the configuration and
the index come last, so that no loader takes an unfinished folder for a checkpoint.  When everything is on the disk
the notes are taken away and the folder gets its name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from auditor.checkpoint import UNFINISHED, is_file_name
from auditor.measure import Progress
from quant.errors import RepairError
from repair.handle import naming
from repair.make.carry import Carried, carry, to_carry
from repair.make.job import Job, expect_same
from repair.make.meter import Meter
from repair.make.notes import PART, RESERVED, Notes, as_rows, locked, part_of
from repair.make.shard import NewShard, Row, put_shard
from repair.osfs import REAL, Fs
from repair.walking import LeftOut, walk

INCOMPLETE = ".incomplete"
_SLACK = 16 << 20  # bytes that must stay free beyond what is written

__all__ = ["INCOMPLETE", "Job", "Made", "Progress", "make"]


@dataclass
class Made:
    """What came of it."""

    folder: Path
    rows: list[Row] = field(default_factory=list)
    nbytes: int = 0  # of all shards
    shards: int = 0
    resumed: int = 0  # shards that an earlier run had finished
    carried: Carried = field(default_factory=Carried)


def make(
    job: Job, target: Path, resume: bool = False, jobs: int = 1, progress: Progress | None = None, fs: Fs = REAL
) -> Made:
    """Make the checkpoint ``target``, which must not exist; its rows in the order of shards and tasks.

    ``resume``: go on where an earlier run of the same job was cut off; without one, begin.  ``progress(done, total)``
    in bytes.  Raises RepairError, leaving the unfinished folder, when a source changes meanwhile, when the disk is
    full (told beforehand where it can be), or when anything cannot be read or written.
    """
    work = target.with_name(target.name + INCOMPLETE) if target.name else target
    with naming(str(target), "cannot be made"):
        _refuse_places(fs, job, target, work, resume)
        with locked(fs, work) as lock:
            _refuse_places(fs, job, target, work, resume)  # it may be there by now
            if fs.status(work) is None:
                fs.mkdir(work)
            fs.fsync_folder(work.parent)  # also after a run that was killed before it did so
            growing = _Growing(job, target, Notes(fs, work, lock))
            if growing.begin():
                growing.expect_room()
                growing.write_shards(jobs, progress)
                growing.finish()
            return growing.name_it()


def _refuse_places(fs: Fs, job: Job, target: Path, work: Path, resume: bool) -> None:
    if not is_file_name(target.name) or target.name.endswith(INCOMPLETE):
        raise RepairError(f"{target}: is no name for a new folder")
    if fs.status(target) is not None:
        raise RepairError(f"{target}: is there already; choose another name or remove it")
    parent = fs.status(target.parent, follow=True)
    if parent is None or not parent.is_folder:
        raise RepairError(f"{target.parent}: no such folder")
    for name in (*(shard.name for shard in job.shards), *job.texts):
        if not is_file_name(name) or name.startswith(RESERVED):
            raise RepairError(f"{target}: {name[:200]!r} is no name for a file in it")
    begun = fs.status(work)
    if begun is not None and not begun.is_folder:
        raise RepairError(f"{work}: is in the way, and no folder")
    if begun is not None and not resume:
        raise RepairError(f"{work}: an unfinished one is there; go on with --resume, or remove it")
    real = fs.resolve(work)
    for source in job.sources:
        root = fs.resolve(source.root)
        if root in (real, *real.parents):
            raise RepairError(f"{target}: lies inside the checkpoint that it would be made from")
        if real in root.parents:
            raise RepairError(f"{target}: the checkpoint that it would be made from lies inside it")


class _Growing:
    """The unfinished folder."""

    def __init__(self, job: Job, target: Path, notes: Notes) -> None:
        self._job, self._target, self._work, self.fs = job, target, notes.work, notes.fs
        self._notes, self._identity = notes, job.identity()
        self._made = Made(target, nbytes=sum(shard.nbytes for shard in job.shards), shards=len(job.shards))
        self._made.carried = to_carry(self.fs, job.sources[0].root, self._anew())
        self._done: dict[str, list[Row]] = {}
        self._one = threading.Lock()  # small files are written one at a time, under one name

    def _anew(self) -> frozenset[str]:
        """Names that are not carried over: made anew, or read by the tasks."""
        names = {shard.name for shard in self._job.shards} | self._job.files.keys()
        return self._job.sources[0].served | names

    def begin(self) -> bool:
        """Note what is made; of a folder that was begun, what is finished.  False when all is.

        RepairError when it was begun for another job, or by someone else.
        """
        notes = self._notes
        found = notes.note()
        if found is None and not [name for name in notes.names() if name != PART]:
            what = f"This folder is unfinished: {self._target.name} is being made here, and it is no checkpoint yet."
            notes.put(UNFINISHED, json.dumps({"unfinished": what, **self._identity}, indent=1).encode())
            return True
        if found is None:
            self._expect_closed()
            return False
        expect_same(self._identity, found, str(self._work))
        notes.remove(*reversed(self._job.files))  # else they would lie beside shards that are missing again
        notes.sync()  # the note, too, may not be on the disk yet
        for shard in self._job.shards:
            rows = notes.rows(shard, self._job.row)
            if rows is not None:
                self._done[shard.name] = rows
        return True

    def _expect_closed(self) -> None:
        """Of a folder without a note: RepairError when it is not whole, or was not made here."""
        last = self._notes.closed()
        rows = as_rows(last.get("rows"), self._job.row)
        if not last or rows is None:
            strange = self._notes.names()[0]
            raise RepairError(f"{self._work}: holds {strange!r} but no {UNFINISHED}: nothing to go on with")
        expect_same(self._identity, last, str(self._work))
        for shard in self._job.shards:
            if self._notes.size(shard.name) != shard.nbytes:
                raise RepairError(f"{self._work}: holds no {shard.name} any more; remove it to begin anew")
        self._notes.sync()  # that the note is gone may not be on the disk yet
        self._made.rows, self._made.resumed = rows, len(self._job.shards)

    def expect_room(self) -> None:
        """RepairError when what is still to be written does not fit on the disk."""
        sizes = {shard.name: shard.nbytes for shard in self._job.shards if shard.name not in self._done}
        left = sum(sizes.values()) + self._made.carried.nbytes
        free = self.fs.free(self._work)
        if left + _SLACK > free:
            raise RepairError(f"{self._target}: {left:,} bytes are to be written, but only {free:,} are free")

    def write_shards(self, jobs: int, progress: Progress | None) -> None:
        """Every shard that is not finished yet; rows in the order of the shards, whoever is done first."""
        left = [shard for shard in self._job.shards if shard.name not in self._done]
        self._made.resumed = len(self._job.shards) - len(left)
        meter = Meter(self._made.nbytes, self._made.nbytes - sum(shard.nbytes for shard in left), progress)
        if jobs > 1 and len(left) > 1:
            self._write_beside(left, jobs, meter)
        else:
            for shard in left:
                self._write(shard, jobs, meter, jobs > 1)
        self._made.rows += [row for shard in self._job.shards for row in self._done[shard.name]]

    def _write_beside(self, left: Sequence[NewShard], jobs: int, meter: Meter) -> None:
        """Several shards at a time, each on one thread, the last one on all.

        Two threads that write one file wait for each other.
        """
        with ThreadPoolExecutor(min(jobs, len(left))) as threads:
            pending = [threads.submit(self._write, shard, 1, meter, True) for shard in left[:-1]]
            pending.append(threads.submit(self._write, left[-1], jobs, meter, True))
            try:
                wait(pending, return_when=FIRST_EXCEPTION)
                failed = next((one for one in pending if one.done() and one.exception()), None)
                if failed is not None:
                    failed.result()
            except BaseException:
                meter.stop()
                for one in pending:
                    one.cancel()
                raise

    def _write(self, shard: NewShard, jobs: int, meter: Meter, behind: bool) -> None:
        """One shard: written, on the disk, under its name, and recorded, in this order."""
        notes, part = self._notes, part_of(shard.name)
        notes.unrecord(shard.name)
        notes.remove(part, shard.name)
        rows, file = put_shard(self.fs, self._work / part, shard, jobs, meter.tick, behind)
        with file:
            for source in self._job.sources:
                source.expect_unchanged(used=True)
            file.sync()
        with self._one:
            notes.instate(shard.name, part)
            notes.record(shard.name, rows)
        self._done[shard.name] = rows

    def finish(self) -> None:
        """The other files, the index and the configuration; the notes are taken away."""
        notes = self._notes
        carry(self.fs, self._job.sources[0].root, self._work, self._made.carried.files)
        for source in self._job.sources:
            source.expect_unchanged()
        self._expect_ours()
        for name, raw in self._job.files.items():
            if raw is not None:
                notes.put(name, raw)
        for shard in self._job.shards:
            notes.unrecord(shard.name)
        notes.remove(PART)
        notes.sync()
        notes.close(self._identity, self._made.rows)

    def name_it(self) -> Made:
        """Give the folder its name."""
        with naming(self._target.name, "cannot be given its name"):
            self.fs.rename(self._work, self._target)
            self.fs.fsync_folder(self._target.parent)
        return self._made

    def _expect_ours(self) -> None:
        """RepairError, naming the first, when something is there that was not made here."""
        passed: list[LeftOut] = []
        ours = {shard.name for shard in self._job.shards}.union(self._made.carried.files)
        found = map(str, walk(self.fs, self._work, passed))
        strange = [name for name in found if name not in ours and not name.startswith(RESERVED)]
        strange += map(str, passed)
        if strange:
            raise RepairError(f"{self._work}: holds {sorted(strange)[0]!r}, which was not made here; remove it")
