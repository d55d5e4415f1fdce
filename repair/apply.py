"""Carry out a plan, take it back, settle one that was interrupted.

The order is what makes a crash harmless: compare, journal, sync, patch, sync, verify, mark.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quant.errors import RepairError
from repair import verify
from repair.compare import compare
from repair.content import Shared
from repair.frame import Record
from repair.inplace import Places, Ready, Side, expect_own, holds, put, stage_text, sync_shards
from repair.journal import Head, Journal, State, Subject, Writer
from repair.ledger import Entry, Ledger, locked
from repair.osfs import REAL, Fs
from repair.patch import Plan
from repair.refusals import DamagedJournalError, UnfinishedError, refuse_file
from repair.takeback import reversed_plan
from repair.verify import Proof

__all__ = ["Entry", "Outcome", "Proof", "apply", "history", "hot", "recover", "undo", "undo_plan"]


class Done(enum.Enum):
    """What came of it."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"  # the new bytes were there already
    ROLLED_BACK = "rolled back"  # every file is as before the interrupted repair
    COMPLETED = "completed"  # every file is as the interrupted repair meant it


class Outcome(NamedTuple):
    """What was done, in which entry, to which files; ``proof`` says how it was verified."""

    done: Done
    message: str
    entry: int | None = None
    files: tuple[str, ...] = ()
    patches: int = 0
    nbytes: int = 0
    proof: str = ""
    notes: tuple[str, ...] = ()


def apply(root: Path, plan: Plan, proof: Proof = Proof.RANGES, fs: Fs = REAL) -> Outcome:
    """Check that every old byte is there, write and sync the journal, then write and sync the files.

    All or nothing: on any error every file is as before, or a journal is left that `recover` settles.  Raises
    RepairError (see `refusals`) before the first write when something is not as the plan says.
    """
    if not plan.touched:
        return Outcome(Done.UNCHANGED, "nothing to repair: the plan is empty")
    with locked(fs, root) as ledger:
        ledger.expect_settled()
        ledger.clean()
        return _carry_out(ledger, plan, "repair", None, {}, proof)


def undo(root: Path, entry: int | None = None, proof: Proof = Proof.RANGES, fs: Fs = REAL) -> Outcome:
    """Take an entry back, byte for byte: the newest when none is named, which may be an undo itself.

    RepairError when the files do not hold all of the entry's new bytes, and as `apply`.
    """
    if not Ledger(fs, root).numbers():
        raise RepairError(f"{fs.resolve(root).name}: nothing to undo: no repair is recorded here")
    with locked(fs, root) as ledger:
        ledger.expect_settled()
        ledger.clean()
        number, plan, modes = _undo_plan(ledger, entry)
        outcome = _carry_out(ledger, plan, "undo", number, modes, proof)
        if outcome.done is Done.UNCHANGED:
            by = next((e.undone_by for e in ledger.entries() if e.number == number and e.undone_by), None)
            raise RepairError(f"entry {number} is undone already" + (f", by entry {by}" if by else ""))
        return outcome


def undo_plan(root: Path, entry: int | None = None, fs: Fs = REAL) -> Plan:
    """What `undo` would do, as a plan; nothing is written, no lock is taken."""
    ledger = Ledger(fs, root)
    if not ledger.numbers():
        raise RepairError(f"{ledger.label}: nothing to undo: no repair is recorded here")
    return _undo_plan(ledger, entry)[1]


def history(root: Path, fs: Fs = REAL) -> list[Entry]:
    """Every repair and undo that was recorded, oldest first; damaged entries too.  Nothing is written."""
    return Ledger(fs, root).entries()


def hot(root: Path, fs: Fs = REAL) -> Entry | None:
    """The entry that must be settled, or looked at by a person, before anything else is done; None when all is well.

    Also of a repair that is at work at this moment.  Nothing is written.
    """
    return next((entry for entry in Ledger(fs, root).entries() if entry.state != "complete"), None)


def recover(root: Path, fs: Fs = REAL) -> Outcome:
    """Settle an interrupted repair: every file becomes what it was before.

    Only when the completion mark itself was being written, and so every file is on the disk as planned, is the
    repair completed instead.  Raises RepairError, having written nothing, when the journal is damaged or of
    other files, or when a file holds bytes that are neither old nor new.
    """
    if not Ledger(fs, root).exists:
        return Outcome(Done.UNCHANGED, "nothing to settle")
    with locked(fs, root) as ledger:
        ledger.clean()
        journal = ledger.unfinished()
        if journal is None:
            ledger.expect_settled()
            return Outcome(Done.UNCHANGED, "nothing to settle")
        expect_own(ledger, journal)
        files = tuple(subject.name for subject in journal.head.subjects)
        if journal.state is State.TORN and not holds(ledger, journal, Side.NEW):
            sync_shards(ledger, journal)
            journal.complete()
            message = f"the interrupted {journal.head.kind} was complete but for its mark"
            return Outcome(Done.COMPLETED, message, journal.number, files, journal.count)
        if journal.state is State.TORN and (why := holds(ledger, journal, Side.OLD)):
            raise DamagedJournalError(f"{journal.name} is damaged: its mark makes no sense, and {why}")
        _roll_back(ledger, journal)
        message = f"the interrupted {journal.head.kind} was taken back: every file is as before"
        return Outcome(Done.ROLLED_BACK, message, journal.number, files, journal.count)


def _undo_plan(ledger: Ledger, entry: int | None) -> tuple[int, Plan, dict[str, Subject]]:
    number = max(ledger.numbers()) if entry is None else entry
    journal = ledger.journal(number)
    if journal.state is not State.COMPLETE:
        raise UnfinishedError(f"{journal.name}: was interrupted; it must be settled first")
    plan = reversed_plan(journal, Shared(journal.path, ledger.fs))
    return number, plan, {subject.name: subject for subject in journal.head.subjects}


def _carry_out(
    ledger: Ledger, plan: Plan, kind: str, of: int | None, before: Mapping[str, Subject], proof: Proof
) -> Outcome:
    number = ledger.next_number()
    head = Head(plan.identity(), kind, of, plan.rules, _subjects(ledger, plan, before))
    writer, ready = Writer(ledger.fs, ledger.part(number), head), Ready()

    def take(record: Record) -> None:
        writer.add(record)
        ready.add(record)

    try:
        verdict = compare(ledger.fs, ledger.root, plan, take)
        if verdict.new:
            ledger.discard(number)
            return Outcome(Done.UNCHANGED, "nothing to repair: all new bytes are there already")
        outside = verify.outside(ledger.fs, ledger.root, plan) if proof is Proof.FULL else {}
        writer.seal()
        _stage(ledger, number, plan, head)
        journal = ledger.instate(number)
    except BaseException:
        writer.close()
        with contextlib.suppress(RepairError, OSError):  # no file was touched: what stays is tidied by the next repair
            ledger.discard(number)
        raise
    writer.close()
    try:
        put(ledger, journal, Side.NEW, verdict.places, ready.records)
        shown = verify.after(ledger, journal, plan, outside, proof, ready.records)
    except BaseException as error:
        _give_up(ledger, journal, verdict.places, error)
        raise
    _mark(journal)
    message = f"{'repaired' if kind == 'repair' else f'took back entry {of}'}: entry {number}"
    return Outcome(Done.APPLIED, message, number, tuple(plan.touched), len(plan.patches), plan.total, shown,
                   tuple(verdict.notes))  # fmt: skip


def _subjects(ledger: Ledger, plan: Plan, before: Mapping[str, Subject]) -> tuple[Subject, ...]:
    """The files in the order of the records.  A text that is not there gets the mode it had, if it is known."""
    subjects = []
    for name in [*plan.files, *(text.file for text in plan.texts)]:
        status = refuse_file(ledger.fs, ledger.root / name)
        if status is not None:
            subjects.append(Subject(name, plan.files.get(name), status.permissions, status.uid, status.gid))
        else:
            old = before.get(name)
            known = (old.mode, old.uid, old.gid) if old else (None, 0, 0)
            subjects.append(Subject(name, plan.files.get(name), *known))
    return tuple(subjects)


def _stage(ledger: Ledger, number: int, plan: Plan, head: Head) -> None:
    """Texts are written before anything is patched, so that a full disk is met while nothing has happened."""
    first = len(plan.files)
    for place, text in enumerate(plan.texts, first):
        if text.new is not None:
            stage_text(ledger, number, place, head.subjects[place], text.new)


def _mark(journal: Journal) -> None:
    try:
        journal.complete()
    except RepairError as error:  # the mark may be on the disk or not: nothing may be taken back now
        raise UnfinishedError(f"all bytes are written, but not the mark that says so ({error}); settle it") from error


def _give_up(ledger: Ledger, journal: Journal, places: Places, error: BaseException) -> None:
    """Take back what was written; when that fails too the journal stays for `recover`."""
    try:
        _roll_back(ledger, journal, places)
    except (RepairError, OSError) as second:
        raise UnfinishedError(f"{error}; taking it back failed too: {second}; settle it once that is mended") from error


def _roll_back(ledger: Ledger, journal: Journal, places: Places | None = None) -> None:
    put(ledger, journal, Side.OLD, places)
    if why := holds(ledger, journal, Side.OLD):
        raise RepairError(f"taking back {journal.name} did not hold: {why}")
    ledger.discard(journal.number)
