"""A new checkpoint's folder: it grows beside its name, says that it is unfinished, and can be gone on with.

``DST.incomplete`` holds, from its first moment on, UNFINISHED.json: what is being made, from what, with which options.
Each shard is written under another name, synced, renamed, and then recorded in a file of its own; the configuration and
the index come last, so that no loader takes an unfinished folder for a checkpoint.  When everything is on the disk
the notes are taken away and the folder gets its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from auditor.checkpoint import INDEX_SUFFIX, SINGLE
from quant.errors import RepairError
from repair.handle import Handle, naming
from repair.make.carry import Carried, carry
from repair.make.shard import NewShard, Row, write_shard
from repair.make.sources import Sources
from repair.osfs import REAL, Fs
from repair.shardheader import header_bytes

INCOMPLETE = ".incomplete"
NOTE = "UNFINISHED.json"
_LOCK = "UNFINISHED.lock"
_RECORD = "UNFINISHED."  # + shard + .json
_PART = ".part"
_INDEX = "model" + INDEX_SUFFIX
_SLACK = 16 << 20  # bytes that must stay free beyond what is written

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A checkpoint to be made.

    ``kind`` and ``options``: what a resumed run must agree with.  ``sources``: the first one's other files are carried
    over, but for ``texts`` (name -> content; None leaves the file out).  ``row``: what the tasks' rows are.
    """

    kind: str
    options: Mapping[str, str]
    sources: tuple[Sources, ...]
    shards: tuple[NewShard, ...]
    texts: Mapping[str, bytes | None]
    row: type[Row] = Row

    def identity(self) -> dict[str, Any]:
        """What is made from what, as JSON: the tensors to be written, and each source shard's digest."""
        made = {shard.name: [[*entry] for entry in shard.entries] for shard in self.shards}
        texts = {name: None if raw is None else raw.decode("utf-8", "replace") for name, raw in self.texts.items()}
        found = {
            "kind": self.kind,
            "options": dict(self.options),
            "sources": [source.identity() for source in self.sources],
            "tensors": _digest(made),
            "texts": _digest(texts),
        }
        normal: dict[str, Any] = json.loads(json.dumps(found))  # as it is read again
        return normal


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
    work = target.with_name(target.name + INCOMPLETE)
    _refuse_places(fs, job, target, work)
    begun = fs.status(work) is not None
    if begun and not resume:
        raise RepairError(f"{work}: an unfinished one is there; go on with --resume, or remove it")
    if not begun:
        with naming(target.name, "cannot be made"):
            fs.mkdir(work)
            fs.fsync_folder(work.parent)
    with naming(work.name, "cannot be locked"):
        lock = fs.open_lock(work / _LOCK)
    try:
        if not fs.try_lock(lock):
            raise RepairError(f"{work}: another process is at work on it")
        growing = _Growing(job, target, work, fs)
        growing.begin()
        growing.expect_room()
        growing.write_shards(jobs, progress)
        return growing.finish()
    finally:
        fs.close(lock)


def _refuse_places(fs: Fs, job: Job, target: Path, work: Path) -> None:
    if not target.name or target.name.endswith(INCOMPLETE):
        raise RepairError(f"{target}: is no name for a new folder")
    if fs.status(target) is not None:
        raise RepairError(f"{target}: is there already; choose another name or remove it")
    parent = fs.status(target.parent, follow=True)
    if parent is None or not parent.is_folder:
        raise RepairError(f"{target.parent}: no such folder")
    for source in job.sources:
        root = fs.resolve(source.root)
        if root in (fs.resolve(work), *fs.resolve(work).parents):
            raise RepairError(f"{target}: lies inside the checkpoint that it would be made from")


class _Growing:
    """The unfinished folder."""

    def __init__(self, job: Job, target: Path, work: Path, fs: Fs) -> None:
        self._job, self._target, self._work, self.fs = job, target, work, fs
        self._made = Made(target)
        self._done: dict[str, list[Row]] = {}

    def begin(self) -> None:
        """Note what is made; of a folder that was begun, what is finished.  RepairError when it was another job's."""
        identity = self._job.identity()
        path = self._work / NOTE
        if self.fs.status(path) is not None:
            self._expect_same(identity)
            self._done = {shard.name: rows for shard in self._job.shards if (rows := self._record(shard)) is not None}
            return
        if strange := [name for name in self.fs.listdir(self._work) if name not in (_LOCK, NOTE + _PART)]:
            self._expect_whole(strange[0])
            self._done = {shard.name: [] for shard in self._job.shards}
            return
        what = f"This folder is unfinished: {self._target.name} is being made here, and it is no checkpoint yet."
        self._put(NOTE, json.dumps({"unfinished": what, **identity}, indent=1).encode())

    def _expect_same(self, identity: Mapping[str, Any]) -> None:
        found = self._json(NOTE)
        for key, value in identity.items():
            if found.get(key) != value:
                raise RepairError(
                    f"{self._work}: was begun with other {key}; remove it to begin anew"
                    if key in ("kind", "options")
                    else f"{self._work}: was begun when the {key} were others; remove it to begin anew"
                )

    def _expect_whole(self, strange: str) -> None:
        """Of a folder without a note: cut off between the last sync and the renaming, or somebody else's."""
        for shard in self._job.shards:
            head = header_bytes(shard.entries, shard.metadata, shard.name)
            if self._content(shard.name, len(head)) != head or self._size(shard.name) != shard.nbytes:
                break
        else:
            texts = {**self._index(), **self._job.texts}
            if all(raw is None or self._content(name) == raw for name, raw in texts.items()):
                return
        raise RepairError(f"{self._work}: holds {strange}, but no {NOTE}: it is not an unfinished checkpoint of ours")

    def _size(self, name: str) -> int:
        status = self.fs.status(self._work / name)
        return -1 if status is None else status.size

    def _content(self, name: str, length: int | None = None) -> bytes | None:
        """The first ``length`` bytes of a file, or all; None when it is not there or shorter."""
        size = self._size(name)
        if size < (length or 0):
            return None
        with Handle.reading(self.fs, self._work / name) as file:
            return file.read(0, size if length is None else length)

    def _record(self, shard: NewShard) -> list[Row] | None:
        """The rows of a shard that is finished; None when it is not."""
        if self._size(shard.name) != shard.nbytes or self._size(_record(shard)) < 0:
            return None
        found = self._json(_record(shard))
        try:
            return [self._job.row(**row) for row in found["rows"]]
        except (KeyError, TypeError):
            raise RepairError(
                f"{self._work.name}: {_record(shard)} is damaged; remove it to write the shard again"
            ) from None

    def expect_room(self) -> None:
        """RepairError when what is still to be written does not fit on the disk."""
        sizes = {shard.name: shard.nbytes for shard in self._job.shards}
        self._made.nbytes, self._made.shards = sum(sizes.values()), len(sizes)
        left = sum(size for name, size in sizes.items() if name not in self._done)
        with naming(self._work.name, "cannot be looked at"):
            free = self.fs.free(self._work)
        if left + _SLACK > free:
            raise RepairError(f"{self._target}: {left:,} bytes are to be written, but only {free:,} are free")

    def write_shards(self, jobs: int, progress: Progress | None) -> None:
        """Every shard that is not finished yet, one after the other."""
        done = sum(shard.nbytes for shard in self._job.shards if shard.name in self._done)

        def tick(more: int) -> None:
            nonlocal done
            done += more
            if progress:
                progress(done, self._made.nbytes)

        for shard in self._job.shards:
            if shard.name in self._done:
                self._made.resumed += 1
            else:
                self._done[shard.name] = self._write(shard, jobs, tick)
            self._made.rows += self._done[shard.name]

    def _write(self, shard: NewShard, jobs: int, tick: Callable[[int], None]) -> list[Row]:
        path = self._work / shard.name
        for name in (shard.name + _PART, shard.name, _record(shard)):
            self._remove(name)
        rows = write_shard(self.fs, self._work / (shard.name + _PART), shard, jobs, tick)
        self._expect_unchanged()
        with naming(shard.name, "cannot be given its name"):
            self.fs.rename(self._work / (shard.name + _PART), path)
            self.fs.fsync_folder(self._work)
        self._put(_record(shard), json.dumps({"rows": [asdict(row) for row in rows]}).encode())
        return rows

    def finish(self) -> Made:
        """The other files, the index and the configuration; then the folder gets its name."""
        fs, work = self.fs, self._work
        texts = {**self._index(), **self._job.texts}
        made = texts.keys() | {shard.name for shard in self._job.shards} | set(self._job.sources[0].names)
        self._made.carried = carry(fs, self._job.sources[0].root, work, made)
        self._expect_unchanged()
        for name, raw in texts.items():
            if raw is not None:
                self._put(name, raw)
        for name in [*map(_record, self._job.shards), _LOCK, NOTE]:
            self._remove(name)
        with naming(self._target.name, "cannot be given its name"):
            fs.fsync_folder(work)
            fs.rename(work, self._target)
            fs.fsync_folder(self._target.parent)
        return self._made

    def _index(self) -> dict[str, bytes | None]:
        shards = self._job.shards
        if [shard.name for shard in shards] == [SINGLE]:
            return {_INDEX: None}
        held = {entry.name: shard.name for shard in shards for entry in shard.entries}
        total = sum(entry.nbytes for shard in shards for entry in shard.entries)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(held.items()))}
        return {_INDEX: (json.dumps(content, indent=2) + "\n").encode()}

    def _expect_unchanged(self) -> None:
        for source in self._job.sources:
            source.expect_unchanged()

    def _put(self, name: str, raw: bytes) -> None:
        """A small file, whole or not at all."""
        fs = self.fs
        self._remove(name + _PART)
        with Handle.creating(fs, self._work / (name + _PART)) as file:
            file.write(0, raw)
            file.sync()
        with naming(name, "cannot be given its name"):
            fs.rename(self._work / (name + _PART), self._work / name)
            fs.fsync_folder(self._work)

    def _remove(self, name: str) -> None:
        if self.fs.status(self._work / name) is not None:
            with naming(name, "cannot be removed"):
                self.fs.unlink(self._work / name)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._content(name) or b"")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RepairError(f"{self._work.name}: {name} is damaged; remove the folder to begin anew")
        return found


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _record(shard: NewShard) -> str:
    return f"{_RECORD}{shard.name}.json"
