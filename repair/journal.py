"""The journal of one repair: old and new bytes of every range of every file, readable after any crash.

It is written under a working name, synced, and only then given its real name: a journal that bears its name was
whole once, so one that is not whole is damaged, never merely young.  docs/repair-journal.md has the argument.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from auditor.checkpoint import SUFFIX, is_file_name
from auditor.interrupted import MARK_BYTES
from quant.errors import RepairError
from repair import frame
from repair.frame import MAPPED, PATCH, TABLE, TABLES, TEXT, Record
from repair.handle import Handle
from repair.osfs import Fs
from repair.patch import FileState
from repair.refusals import DamagedJournalError

_FLUSH = 1 << 20
_DIRECT = 1 << 15  # bytes that are written on their own


class State(enum.Enum):
    """How far a repair came, as its mark says."""

    UNFINISHED = "unfinished"  # zeros: files may hold old bytes, new bytes, or both
    COMPLETE = "complete"  # every file holds the new bytes
    TORN = "torn"  # neither: the mark was being written, or was damaged


class Subject(NamedTuple):
    """A file that the journal is about.  ``state`` is None for a text file, ``mode`` when it was not there."""

    name: str
    state: FileState | None
    mode: int | None
    uid: int = 0
    gid: int = 0


class Head(NamedTuple):
    """What a journal says of itself: the plan, what it takes back, the files by name, size and header hash."""

    plan: str
    kind: str  # repair or undo
    of: int | None  # the entry that an undo takes back
    rules: dict[str, int]
    subjects: tuple[Subject, ...]

    def to_json(self) -> bytes:
        """As stored."""
        subjects = [{**s._asdict(), "state": s.state and s.state._asdict()} for s in self.subjects]
        return json.dumps({**self._asdict(), "subjects": subjects}, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Head:
        """As read; DamagedJournalError when a field is missing or of the wrong kind."""
        try:
            content = json.loads(raw)
            head = cls(
                str(content["plan"]),
                {"repair": "repair", "undo": "undo"}[content["kind"]],
                None if content["of"] is None else int(content["of"]),
                {str(rule): int(count) for rule, count in content["rules"].items()},
                tuple(_subject(entry) for entry in content["subjects"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedJournalError(f"its header makes no sense: {error!r}") from None
        if len({subject.name for subject in head.subjects}) != len(head.subjects):
            raise DamagedJournalError("its header names a file twice")
        return head


def _subject(entry: dict[str, Any]) -> Subject:
    name, state, mode = entry["name"], entry["state"], entry["mode"]
    if not isinstance(name, str) or not is_file_name(name) or name.startswith("."):
        raise ValueError(f"{name!r} is not a file name inside the folder")
    if (state is not None) != name.endswith(SUFFIX):
        raise ValueError(f"{name}: shards, and only shards, have a header")
    known = None
    if state is not None:
        size, mtime, sha, start = state["size"], state["mtime_ns"], state["header_sha256"], state["data_start"]
        known = FileState(int(size), int(mtime), str(sha), int(start))
        if not 10 <= known.data_start <= known.size:
            raise ValueError(f"{name}: its data cannot begin at {known.data_start}")
    owners = [int(entry[key]) for key in ("uid", "gid")]
    if not all(0 <= owner < 1 << 32 for owner in owners):
        raise ValueError(f"{name}: no such owner")
    return Subject(name, known, None if mode is None else int(mode) & 0o7777, *owners)


class Writer:
    """Writes a journal under its working name; nothing counts until `seal` has returned."""

    def __init__(self, fs: Fs, path: Path, head: Head) -> None:
        """Makes the file."""
        text = head.to_json()
        raw = frame.head(text)
        if len(text) > frame.MAX_HEAD:
            raise RepairError(f"{len(head.subjects)} files are too many for one repair")
        self._file = Handle.creating(fs, path)
        self._buffer = bytearray(raw)
        self._chain = raw[-frame.SUM :]
        self._at = 0
        self.records = 0

    def add(self, record: Record) -> None:
        """Append; RepairError when there is no room."""
        parts = frame.pack(record, self._chain)
        self._chain = parts[-1]
        self.records += 1
        for part in parts:
            if len(part) < _DIRECT:
                self._buffer += part
            else:  # as it is: copied it would cost as much again
                self._flush()
                self._file.write(self._at, part)
                self._at += len(part)
        if len(self._buffer) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        self._file.write(self._at, memoryview(buffer))
        self._at += len(buffer)

    def seal(self) -> None:
        """Close the records, leave room for the mark, and sync."""
        end = self._at + len(self._buffer)
        self._buffer += frame.seal(self.records, end, self._chain) + bytes(MARK_BYTES)
        self._flush()
        self._file.sync()

    def close(self) -> None:
        """Give the file back; safe to call twice."""
        self._file.close()


class Journal:
    """A sealed journal.  Opening reads its two ends; `records` reads and checks the rest."""

    def __init__(self, fs: Fs, path: Path, number: int) -> None:
        """DamagedJournalError when header, seal or length do not hold."""
        self.fs, self.path, self.number = fs, path, number
        with self._open() as file:
            status = file.status()
            if not status.is_file:
                raise DamagedJournalError(f"{self.name} is not a regular file")
            self.size, self.mtime_ns = status.size, status.mtime_ns
            with self._naming():
                self._read(file)

    @property
    def name(self) -> str:
        """As in messages."""
        return f"journal {self.path.parent.name}/{self.path.name}"

    def _open(self) -> Handle:
        status = self.fs.status(self.path)
        if status is None or not status.is_file:
            raise DamagedJournalError(f"{self.name} is not a regular file")
        return Handle.reading(self.fs, self.path)

    def _naming(self) -> _Naming:
        return _Naming(f"{self.name} is damaged: ")

    def _read(self, file: Handle) -> None:
        if self.size < frame.HEAD.size:
            raise DamagedJournalError("it is too short")
        raw = file.read(0, frame.HEAD.size)
        magic, version, length = frame.HEAD.unpack(raw)
        if magic != frame.MAGIC:
            raise DamagedJournalError("it does not begin as one")
        if version not in frame.KNOWN:
            raise DamagedJournalError(f"it is of version {version}; this program knows {frame.VERSION}")
        self._version = version
        self._first = frame.HEAD.size + length + 32
        if length > frame.MAX_HEAD or self._first + frame.SEAL_BYTES + MARK_BYTES > self.size:
            raise DamagedJournalError("it ends before its header does")
        raw = file.read(0, self._first)
        if hashlib.sha256(raw[:-32]).digest() != raw[-32:]:
            raise DamagedJournalError("its header's checksum does not hold")
        self._start = raw[-frame.SUM :]
        self.head = Head.from_json(raw[frame.HEAD.size : -32])
        tail = file.read(self.size - frame.SEAL_BYTES - MARK_BYTES, frame.SEAL_BYTES + MARK_BYTES)
        self._seal, found = tail[: frame.SEAL_BYTES], tail[frame.SEAL_BYTES :]
        self.count, self._end, self._last = frame.read_seal(self._seal, self.size)
        self.state = State.TORN
        if found == frame.mark(self._seal):
            self.state = State.COMPLETE
        elif not any(found):
            self.state = State.UNFINISHED

    def records(self) -> Iterator[Record]:
        """Every record, a few at a time in memory, checked."""
        for _, record in self.placed():
            yield record

    def placed(self) -> Iterator[tuple[int, Record]]:
        """As `records`, with the offset of its old bytes in the journal; DamagedJournalError at the first flaw."""
        for place, at, rest in self._walk():
            yield place, frame.unpack(at, rest)

    def _walk(self) -> Iterator[tuple[int, frame.Shape, memoryview]]:
        """(offset of the old bytes, fixed part, what follows it) of every record, its place and checksum proven."""
        with self._open() as file, self._naming():
            cursor = _Cursor(file, self._first, self._end)
            chain, order = self._start, (-1, 0)
            for _ in range(self.count):
                fixed = bytes(cursor.take(frame.RECORD.size))
                at = frame.shape(fixed)
                self._check(at, order)
                order = (at.file, at.offset + (at.old or 0))
                place = cursor.position + at.tensor + at.rule
                rest = cursor.take(at.body + frame.SUM)
                chain = frame.proven(self._version, at, fixed, rest, chain)
                yield place, at, rest
            if chain != self._last or cursor.position != self._end:
                raise DamagedJournalError("its records are not those that were sealed")

    def _check(self, at: frame.Shape, order: tuple[int, int]) -> None:
        if at.file >= len(self.head.subjects):
            raise DamagedJournalError(f"a record names file {at.file} of {len(self.head.subjects)}")
        subject = self.head.subjects[at.file]
        state = subject.state
        mapped = at.kind == MAPPED and at.new == TABLE and self._version >= TABLES
        whole = mapped or (at.kind == PATCH and at.new == at.old)
        if whole and state is not None and at.old is not None:
            inside = state.data_start <= at.offset and at.offset + at.old <= state.size
            if inside and (at.file > order[0] or (at.file == order[0] and at.offset >= order[1])):
                return
        elif at.kind == TEXT and state is None and at.file > order[0]:
            return
        raise DamagedJournalError(f"a record of {subject.name} at offset {at.offset} is out of place")

    def check(self) -> None:
        """Read all of it; DamagedJournalError at the first flaw."""
        for _ in self._walk():
            pass

    def complete(self) -> None:
        """Write the completion mark and sync: from here on the repair has happened."""
        with Handle.writing(self.fs, self.path) as file:
            file.write(self.size - MARK_BYTES, frame.mark(self._seal))
            file.sync()
        self.state = State.COMPLETE

    def sync(self) -> None:
        """Make sure that what was read is on the disk: its writer may have died before it could."""
        with Handle.writing(self.fs, self.path) as file:
            file.sync()


class _Naming:
    """Puts the journal's name before what is wrong with it."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, DamagedJournalError) and not str(error).startswith("journal "):
            raise DamagedJournalError(f"{self.prefix}{error}") from None


class _Cursor:
    """Reads on from one offset to another, a megabyte at a time."""

    def __init__(self, file: Handle, start: int, end: int) -> None:
        self._file, self.position, self._end = file, start, end
        self._buffer, self._base = memoryview(b""), start

    def take(self, length: int) -> memoryview:
        if self.position + length > self._end:
            raise DamagedJournalError("a record reaches past the end")
        start = self.position - self._base
        if start + length > len(self._buffer):
            self._base = self.position
            most = min(max(length, _FLUSH), self._end - self.position)
            self._buffer = memoryview(self._file.read(self.position, most))
            start = 0
        self.position += length
        return self._buffer[start : start + length]
