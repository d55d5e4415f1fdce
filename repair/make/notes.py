"""The small files of an unfinished folder: what is made there, which shards are finished, and what was said of them.

All of their names begin with ``UNFINISHED``, and no other file's does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from auditor import jsonfile
from auditor.checkpoint import UNFINISHED
from quant.errors import CheckpointError, RepairError
from repair.handle import Handle, naming
from repair.make.shard import NewShard, Row
from repair.osfs import Fs

RESERVED = "UNFINISHED"
LOCK = ".lock"
PART = RESERVED + ".part"  # whatever small file is being written at the moment
_MAX_NOTE = 256 << 20  # bytes; rows of a million tensors in one shard
_TYPES: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


@contextmanager
def locked(fs: Fs, work: Path) -> Iterator[Handle]:
    """Hold the lock of the folder ``work``: the file beside it, which is taken away when all went well.

    It cannot lie in the folder, which gets another name while it is held.  RepairError when another process holds it.
    """
    path = work.with_name(work.name + LOCK)
    with naming(path.name, "cannot be made"):
        lock = Handle(fs, path, fs.open_lock(path))
    with lock:
        with naming(path.name, "cannot be locked"):
            held, now = fs.try_lock(lock.fd), fs.status(path)
            if not held or now is None or now.inode != lock.status().inode:  # taken away by who held it before
                raise RepairError(f"{work}: another process is at work on it")
        done = False
        try:
            yield lock
            done = True
        finally:
            with suppress(OSError):
                if done or not fs.fstatus(lock.fd).size:  # else it tells what the folder is
                    fs.unlink(path)


class Notes:
    """The notes in the folder ``work``, and the last one, in its lock."""

    def __init__(self, fs: Fs, work: Path, lock: Handle) -> None:
        """Nothing is read or written yet."""
        self.fs, self.work, self._lock = fs, work, lock

    def names(self) -> list[str]:
        """What the folder holds, sorted."""
        with naming(self.work.name, "cannot be listed"):
            return self.fs.listdir(self.work)

    def put(self, name: str, raw: bytes) -> None:
        """A small file, whole or not at all, on the disk."""
        self.remove(PART)
        with Handle.creating(self.fs, self.work / PART) as file:
            file.write(0, raw)
            file.sync()
        self.instate(name)

    def instate(self, name: str, part: str = PART) -> None:
        """Give what was written as ``part`` and synced its name."""
        with naming(name, "cannot be given its name"):
            self.fs.rename(self.work / part, self.work / name)
            self.fs.fsync_folder(self.work)

    def remove(self, *names: str) -> None:
        """Take files away that may be there.  Not yet on the disk: see `sync`."""
        for name in names:
            with naming(name, "cannot be removed"):
                if self.fs.status(self.work / name) is not None:
                    self.fs.unlink(self.work / name)

    def sync(self) -> None:
        """Return when the folder's names are on the disk."""
        with naming(self.work.name, "could not be written to the disk"):
            self.fs.fsync_folder(self.work)

    def size(self, name: str) -> int:
        """Bytes of a regular file, -1 when there is none."""
        with naming(name, "cannot be looked at"):
            status = self.fs.status(self.work / name)
        return status.size if status is not None and status.is_file else -1

    def note(self) -> dict[str, Any] | None:
        """What is being made here; None when nothing says so."""
        return self._json(UNFINISHED) if UNFINISHED in self.names() else None

    def rows(self, shard: NewShard, kind: type[Row]) -> list[Row] | None:
        """What was said of a finished shard; None when it is not finished."""
        name = _record(shard.name)
        if self.size(shard.name) != shard.nbytes or self.size(name) < 0:
            return None
        rows = as_rows(self._json(name).get("rows"), kind)
        if rows is None:
            raise self._damaged(name, "its rows are not those of this command")
        return rows

    def record(self, shard: str, rows: list[Row]) -> None:
        """Note that a shard is finished: it has its name, and is on the disk."""
        self.put(_record(shard), json.dumps({"rows": [asdict(row) for row in rows]}).encode())

    def unrecord(self, shard: str) -> None:
        """Take the note of a shard away."""
        self.remove(_record(shard))

    def close(self, identity: Mapping[str, Any], rows: list[Row]) -> None:
        """Take the note away: only its name is missing now.  Until it has that, the lock tells what it is."""
        last = {**identity, "rows": [asdict(row) for row in rows]}
        self._lock.write(0, json.dumps(last).encode() + b"\n")
        self._lock.sync()
        with naming(self.work.name, "could not be written to the disk"):
            self.fs.fsync_folder(self.work.parent)
        self.remove(UNFINISHED)
        self.sync()

    def closed(self) -> dict[str, Any]:
        """What the lock tells; nothing when it is damaged."""
        size = self._lock.status().size
        if not size or size > _MAX_NOTE:
            return {}
        try:
            return jsonfile.parse(self._lock.read(0, size).partition(b"\n")[0].decode(), self._lock.name)
        except (CheckpointError, UnicodeDecodeError):
            return {}

    def _json(self, name: str) -> dict[str, Any]:
        size = self.size(name)
        if not 0 <= size <= _MAX_NOTE:
            raise self._damaged(name, f"{size} bytes" if size >= 0 else "is no file")
        with Handle.reading(self.fs, self.work / name) as file:
            raw = file.read(0, size)
        try:
            return jsonfile.parse(raw.decode(), name)
        except (CheckpointError, UnicodeDecodeError) as error:
            raise self._damaged(name, str(error).removeprefix(f"{name}: ")) from None

    def _damaged(self, name: str, why: str) -> RepairError:
        return RepairError(f"{self.work / name}: damaged: {why}; remove {self.work.name} to begin anew")


def part_of(shard: str) -> str:
    """What a shard is called until it is on the disk."""
    return f"{RESERVED}.{shard}.part"


def as_rows(found: object, kind: type[Row]) -> list[Row] | None:
    """Rows from JSON; None when they are not of this kind."""
    types = {one.name: _TYPES[getattr(one.type, "__name__", str(one.type))] for one in fields(kind)}
    if not isinstance(found, list) or not all(_fits(row, types) for row in found):
        return None
    return [kind(**row) for row in found]


def _fits(row: object, types: dict[str, Callable[[object], bool]]) -> bool:
    return isinstance(row, dict) and row.keys() == types.keys() and all(types[key](row[key]) for key in row)


def _record(shard: str) -> str:
    return f"{RESERVED}.{shard}.json"
