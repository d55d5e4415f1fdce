"""Carrying out a journal, forwards or backwards: the only code that changes a checkpoint's files."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from quant.errors import RepairError
from repair.compare import expect_state, read_text
from repair.frame import Record, through
from repair.handle import Handle, naming
from repair.journal import Journal, Subject
from repair.ledger import Ledger
from repair.refusals import ChangedError, DamagedJournalError, ForeignJournalError, refuse_file

Places = Mapping[str, tuple[int, int]]
Group = tuple[int, Subject, Iterator[Record]]
_READY = 64 << 20  # bytes


class Side(enum.Enum):
    """Which bytes of a journal."""

    OLD = "old"
    NEW = "new"


def side_of(record: Record, side: Side) -> bytes | None:
    """A record's old or new bytes."""
    return record.old if side is Side.OLD else record.new


class Ready:
    """New bytes of a journal that is being written, held while they are few: they need not be read back from it."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.records: list[Record] | None = []
        self._room = _READY

    def add(self, record: Record) -> None:
        """Keep the new bytes of the next record."""
        if self.records is None:
            return
        new = record.new
        if new is None and record.table is not None and record.old is not None:
            new = through(record.table, record.old)
        self._room -= len(new or b"") + 1000
        self.records.append(record._replace(old=None, new=new))
        if self._room < 0:
            self.records = None


def by_subject(journal: Journal, ready: Sequence[Record] | None = None) -> Iterator[Group]:
    """The journal's records, file by file; ``ready``: they are in memory, as far as they are asked for."""
    for number, records in groupby(journal.records() if ready is None else ready, key=lambda record: record.file):
        yield number, journal.head.subjects[number], records


def put(
    ledger: Ledger,
    journal: Journal,
    side: Side,
    places: Places | None = None,
    ready: Sequence[Record] | None = None,
) -> None:
    """Write one side of every record and sync.  ``places``: the files that were compared; no other is written.
    Without it a file must have its size and header.  ``ready``: the records, that side held in memory.

    Bytes are written whether or not they seem to be there: after a failed sync the system may show bytes that
    the disk does not hold.
    """
    fs, root = ledger.fs, ledger.root
    texts = False
    for number, subject, records in by_subject(journal, ready):
        if subject.state is None:
            for record in records:
                _put_text(ledger, journal, number, subject, side_of(record, side))
                texts = True
            continue
        with Handle.writing(fs, root / subject.name) as file:
            status = file.status()
            if places is None:
                expect_identity(file, journal, subject)
            elif places.get(subject.name) != (status.device, status.inode):
                raise ChangedError(f"{subject.name}: was replaced by another file during the repair")
            for record in records:
                file.write(record.offset, side_of(record, side) or b"")
            file.sync()
    if texts:
        with naming(ledger.label, "could not be written to the disk"):
            fs.fsync_folder(root)


def stage_text(ledger: Ledger, number: int, place: int, subject: Subject, content: bytes) -> Path:
    """Write and sync the content a text file will have, under its working name."""
    path = ledger.text(number, place)
    if ledger.fs.status(path) is not None:
        ledger.fs.unlink(path)
    with Handle.creating(ledger.fs, path) as file:
        file.write(0, content)
        if subject.mode is not None:
            with naming(subject.name, "keeping its mode"):
                ledger.fs.keep_mode(file.fd, subject.mode, subject.uid, subject.gid)
        file.sync()
    return path


def _put_text(ledger: Ledger, journal: Journal, place: int, subject: Subject, content: bytes | None) -> None:
    target = ledger.root / subject.name
    with naming(subject.name, "cannot be replaced"):
        if read_text(ledger.fs, target) == content:
            return  # names change at once or not at all, and the caller syncs the folder
        if content is None:
            ledger.fs.unlink(target)
            return
        staged = stage_text(ledger, journal.number, place, subject, content)
        ledger.fs.rename(staged, target)


def expect_own(ledger: Ledger, journal: Journal) -> None:
    """Raise unless the journal is whole and of these files, and every byte is one of its old or new bytes.

    ForeignJournalError when a file is missing or has another size or header, ChangedError when its bytes are
    neither, DamagedJournalError, and the refusals of `refuse_file`.
    """
    journal.check()
    for _, subject, records in by_subject(journal):
        path = ledger.root / subject.name
        if subject.state is None:
            for record in records:
                if read_text(ledger.fs, path) not in (record.old, record.new):
                    raise ChangedError(f"{subject.name}: holds neither the old nor the new content of {journal.name}")
            continue
        if refuse_file(ledger.fs, path) is None:
            raise ForeignJournalError(f"{journal.name} tells of {subject.name}, which is not there")
        with Handle.writing(ledger.fs, path) as file:
            expect_identity(file, journal, subject)
            for record in records:
                _expect_either(file, record, journal)


def expect_identity(file: Handle, journal: Journal, subject: Subject) -> None:
    """ForeignJournalError unless the shard's size and header are the journal's."""
    if subject.state is not None:
        try:
            expect_state(file, subject.state)
        except RepairError as error:
            raise ForeignJournalError(f"{journal.name} is of other files: {error}") from None


def _expect_either(file: Handle, record: Record, journal: Journal) -> None:
    if record.old is None or record.new is None:
        raise DamagedJournalError(f"{journal.name}: a record of {file.name} lacks its old or new bytes")
    found = file.read(record.offset, len(record.old))
    if found in (record.old, record.new):
        return
    now, old, new = (np.frombuffer(raw, np.uint8) for raw in (found, record.old, record.new))
    wrong = (now != old) & (now != new)
    if wrong.any():
        at = record.offset + int(wrong.argmax())
        raise ChangedError(f"{file.name}: offset {at}: neither the old nor the new byte of {journal.name}")


def holds(ledger: Ledger, journal: Journal, side: Side, ready: Sequence[Record] | None = None) -> str:
    """What is not on that side, or has another size, header or mode than before; "" when all is well.

    ``ready``: as for `put`.
    """
    for _, subject, records in by_subject(journal, ready):
        path = ledger.root / subject.name
        if subject.state is None:
            for record in records:
                if read_text(ledger.fs, path) != side_of(record, side):
                    return f"{subject.name}: not the {side.value} content"
            continue
        with Handle.reading(ledger.fs, path) as file:
            expect_identity(file, journal, subject)
            for record in records:
                due = side_of(record, side) or b""
                if file.read(record.offset, len(due)) != due:
                    return f"{subject.name}: {record.tensor}: offset {record.offset}: not the {side.value} bytes"
            if subject.mode is not None and file.status().permissions != subject.mode:
                return f"{subject.name}: its permissions changed"
    return ""


def sync_shards(ledger: Ledger, journal: Journal) -> None:
    """Make the shards' bytes and the folder's names last, whoever wrote them."""
    for subject in journal.head.subjects:
        if subject.state is not None:
            with Handle.writing(ledger.fs, ledger.root / subject.name) as file:
                file.sync()
    ledger.sync()
