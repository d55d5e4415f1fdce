"""The hidden folder of a checkpoint: its journals by number, the lock, and what a crash left lying about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from auditor.interrupted import FOLDER, JOURNAL
from quant.errors import RepairError
from repair.handle import Handle, naming
from repair.journal import Journal, State
from repair.osfs import Fs
from repair.refusals import BusyError, DamagedJournalError, UnfinishedError, refuse_folder

LOCK = "lock"
_LEFTOVER = re.compile(r"\d{6}\.(part|text-\d+)")
_MOST = 999_999


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal as `audit undo --list` shows it."""

    number: int
    kind: str  # repair, undo, or "" when its header cannot be read
    state: str  # complete, unfinished or damaged
    of: int | None = None  # the entry this one takes back
    undone_by: int | None = None  # the entry that took this one back
    files: tuple[str, ...] = ()
    records: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    plan: str = ""
    nbytes: int = 0  # size of the journal
    mtime_ns: int = 0  # when it was completed
    problem: str = ""


class Ledger:
    """The hidden folder.  Reading needs no lock; everything that writes is called under `locked`."""

    def __init__(self, fs: Fs, root: Path) -> None:
        """RepairError when something else bears the folder's name; nothing is made."""
        self.fs, self.root, self.path = fs, root, root / FOLDER
        status = fs.status(self.path)
        if status is not None and not status.is_folder:
            raise RepairError(f"{FOLDER}: not a folder")
        self.exists = status is not None

    @property
    def label(self) -> str:
        """The checkpoint's name in messages."""
        return self.fs.resolve(self.root).name

    def numbers(self) -> list[int]:
        """Numbers of all journals, ascending."""
        if not self.exists:
            return []
        with naming(FOLDER, "cannot be listed"):
            found = (JOURNAL.fullmatch(name) for name in self.fs.listdir(self.path))
        return sorted(int(match[1]) for match in found if match)

    def place(self, number: int) -> Path:
        """Where a journal lies."""
        return self.path / f"{number:06}.journal"

    def part(self, number: int) -> Path:
        """Where it lies while it is written."""
        return self.path / f"{number:06}.part"

    def text(self, number: int, subject: int) -> Path:
        """Where a text file waits to be renamed."""
        return self.path / f"{number:06}.text-{subject}"

    def journal(self, number: int) -> Journal:
        """RepairError when there is none, DamagedJournalError when it cannot be trusted."""
        if number not in self.numbers():
            raise RepairError(f"there is no entry {number} in {FOLDER}")
        return Journal(self.fs, self.place(number), number)

    def instate(self, number: int) -> Journal:
        """Read a sealed journal back, give it its name, make it last: now, and only now, may files be changed.

        DamagedJournalError when it is not what was written: what it takes back must be certain beforehand.
        """
        written = Journal(self.fs, self.part(number), number)
        written.check()
        if written.state is not State.UNFINISHED:
            raise DamagedJournalError(f"{written.name} is damaged: its mark is not empty")
        with naming(self.place(number).name, "cannot be given its name"):
            self.fs.rename(self.part(number), self.place(number))
        self.sync()
        return self.journal(number)

    def next_number(self) -> int:
        """Of the journal to be written."""
        number = max(self.numbers(), default=0) + 1
        if number > _MOST:
            raise RepairError(f"{FOLDER}: {_MOST} entries are enough")
        return number

    def unfinished(self) -> Journal | None:
        """The journal of an interrupted repair, always the newest.

        DamagedJournalError when any journal cannot be read, or when an older one is not complete: no repair
        begins before the one before it is settled, so something else must have happened.
        """
        numbers = self.numbers()
        for number in numbers:
            journal = self.journal(number)
            if journal.state is State.COMPLETE:
                continue
            if number == numbers[-1]:
                return journal
            raise DamagedJournalError(f"{journal.name} is damaged: it is not complete, though others followed it")
        return None

    def expect_settled(self) -> None:
        """UnfinishedError while an interrupted repair waits; else make the newest journal's mark last.

        Its writer may have been killed between writing the mark and syncing it.
        """
        journal = self.unfinished()
        if journal is not None:
            raise UnfinishedError(f"{journal.name}: a repair was interrupted; it must be settled first")
        numbers = self.numbers()
        if numbers:
            self.journal(numbers[-1]).sync()
        self.sync()

    def sync(self) -> None:
        """Make the folder and its names last."""
        with naming(FOLDER, "could not be written to the disk"):
            self.fs.fsync_folder(self.path)
            self.fs.fsync_folder(self.root)

    def clean(self) -> None:
        """Remove what never became a journal, and texts that were never put in place."""
        with naming(FOLDER, "cannot be tidied"):
            for name in self.fs.listdir(self.path):
                if _LEFTOVER.fullmatch(name):
                    self.fs.unlink(self.path / name)

    def discard(self, number: int) -> None:
        """Remove a journal that changed nothing, or nothing any more."""
        with naming(FOLDER, "cannot be tidied"):
            if self.fs.status(self.place(number)) is not None:
                self.fs.unlink(self.place(number))
        self.clean()
        self.sync()

    def entries(self) -> list[Entry]:
        """All journals, oldest first.  Damaged ones are listed as such."""
        undone: dict[int, int] = {}
        entries = []
        for number in self.numbers():
            try:
                journal = self.journal(number)
            except RepairError as error:
                entries.append(Entry(number, "", "damaged", problem=str(error)))
                continue
            head, done = journal.head, journal.state is State.COMPLETE
            if done and head.of is not None:
                undone[head.of] = number
            names = tuple(subject.name for subject in head.subjects)
            entries.append(
                Entry(number, head.kind, "complete" if done else "unfinished", head.of, None, names, journal.count,
                      head.rules, head.plan, journal.size, journal.mtime_ns)
            )  # fmt: skip
        return _with_undone(entries, undone)


def _with_undone(entries: list[Entry], undone: dict[int, int]) -> list[Entry]:
    """Entries with the number of the one that took each back, unless that one was taken back itself."""
    standing = {of: by for of, by in undone.items() if not _reverted(by, undone)}
    return [replace(entry, undone_by=standing.get(entry.number)) for entry in entries]


def _reverted(number: int, undone: dict[int, int]) -> bool:
    """Whether an entry's effect was taken back: by an undo that stands."""
    depth = 0
    while (by := undone.get(number)) is not None and by > number:
        number, depth = by, depth + 1
    return depth % 2 == 1


@contextmanager
def locked(fs: Fs, root: Path) -> Iterator[Ledger]:
    """The ledger, made when missing, with the lock held: the lock of a dead process is no lock.

    BusyError when another process holds it; RepairError when the folder may not be written.
    """
    refuse_folder(fs, root)
    ledger = Ledger(fs, root)
    if not ledger.exists:
        with naming(FOLDER, "cannot be made"):
            try:
                fs.mkdir(ledger.path)
            except FileExistsError:
                ledger = Ledger(fs, root)  # another process was quicker: the lock will tell
        ledger.exists = True
    path = ledger.path / LOCK
    with naming(LOCK, "cannot be made"):
        file = Handle(fs, path, fs.open_lock(path))
    with file:
        with naming(LOCK, "cannot be taken"):
            if not fs.try_lock(file.fd):
                raise BusyError(f"another repair is at work on {ledger.label}{_holder(file)}")
            fs.pwrite(file.fd, f"{fs.pid():<20}\n".encode(), 0)
        with naming(ledger.label, "the repair failed"):
            yield ledger


def _holder(file: Handle) -> str:
    raw = file.fs.pread(file.fd, 20, 0).strip()
    return f" (process {int(raw)})" if raw.isdigit() else ""
