"""A journal that was damaged, torn, or belongs elsewhere is refused or harmless, whatever byte is hit."""

from __future__ import annotations

import random

import pytest

from quant.errors import RepairError
from repair import frame
from repair.apply import Done, apply, history, hot, recover, undo
from repair.refusals import ChangedError, DamagedJournalError, ForeignJournalError, UnfinishedError
from tests.repair.memory import ROOT, Crash, Disk, MemoryFs
from tests.repair.plans import A, B, Case, cases

CASE = cases()["shards and texts"]
BEFORE, AFTER = CASE.files, CASE.after()
JOURNAL = ROOT / ".audit" / "000001.journal"


def content(disk: Disk) -> dict[str, bytes]:
    return {name: raw for name, (raw, _) in disk.files().items()}


def interrupted(when: str) -> Disk:
    """A repair that died at the first call whose name begins so."""
    plan = CASE.plan_on(CASE.disk())
    fs = MemoryFs(CASE.disk())
    apply(ROOT, plan, fs=fs)
    synced = fs.calls.index("rename 000001.part 000001.journal") + 2
    at = next(n for n, name in enumerate(fs.calls) if n > synced and name.startswith(when))
    fs = MemoryFs(CASE.disk(), dies=at)
    with pytest.raises(Crash):
        apply(ROOT, plan, fs=fs)
    return fs.disk.crashed(random.Random(0), "keep")


def complete() -> Disk:
    disk = CASE.disk()
    apply(ROOT, CASE.plan_on(disk), fs=MemoryFs(disk))
    return disk


def stored(disk: Disk) -> bytearray:
    return disk.inodes[disk.names[JOURNAL]].content


def copy_of(disk: Disk) -> Disk:
    return disk.crashed(random.Random(0), "kill")


START = interrupted("fsync")  # the first shard is written, nothing else
FINISHED = complete()


def test_any_byte_of_an_unfinished_journal_flipped():
    rng = random.Random(7)
    assert content(START) not in (BEFORE, AFTER)
    refused = 0
    for at in range(len(stored(START))):
        disk = copy_of(START)
        stored(disk)[at] ^= rng.randrange(1, 256)
        now = content(disk)
        try:
            recover(ROOT, MemoryFs(disk))
        except DamagedJournalError:
            assert content(disk) == now, f"byte {at}: refused, yet something was written"
            refused += 1
        else:
            assert content(disk) == BEFORE, at
    assert refused == len(stored(START))


def test_any_byte_of_a_complete_journal_flipped():
    rng = random.Random(8)
    for at in range(len(stored(FINISHED))):
        disk = copy_of(FINISHED)
        stored(disk)[at] ^= rng.randrange(1, 256)
        fs = MemoryFs(disk)
        try:
            recover(ROOT, fs)
            undo(ROOT, fs=fs)
        except RepairError:
            assert content(disk) == AFTER, f"byte {at}"
        else:
            assert content(disk) == BEFORE, f"byte {at}"


def test_a_mark_that_was_being_written_is_completed():
    disk = copy_of(FINISHED)
    for length in range(1, 24):
        torn = copy_of(disk)
        stored(torn)[-length:] = bytes(length)
        fs = MemoryFs(torn)
        assert hot(ROOT, fs).state == "unfinished"
        assert recover(ROOT, fs).done is Done.COMPLETED
        assert content(torn) == AFTER
        undo(ROOT, fs=fs)
        assert content(torn) == BEFORE


def test_a_journal_cut_anywhere():
    for length in range(len(stored(START))):
        disk = copy_of(START)
        del stored(disk)[length:]
        now = content(disk)
        with pytest.raises(DamagedJournalError):
            recover(ROOT, MemoryFs(disk))
        assert content(disk) == now


def test_a_journal_with_more_behind_it():
    disk = copy_of(START)
    stored(disk).extend(b"more")
    with pytest.raises(DamagedJournalError):
        recover(ROOT, MemoryFs(disk))


def test_what_never_became_a_journal_is_no_journal():
    disk = CASE.disk()
    fs = MemoryFs(disk)
    fs.mkdir(ROOT / ".audit")
    disk.put(ROOT / ".audit" / "000001.part", bytes(stored(START))[:100])
    disk.put(ROOT / ".audit" / "000001.text-2", b"half")
    assert hot(ROOT, fs) is None
    apply(ROOT, CASE.plan_on(disk), fs=fs)
    assert content(disk) == AFTER
    assert fs.listdir(ROOT / ".audit") == ["000001.journal", "lock"]


def test_everything_waits_until_an_interrupted_repair_is_settled():
    disk = copy_of(START)
    fs = MemoryFs(disk)
    entry = hot(ROOT, fs)
    assert (entry.number, entry.state, entry.kind) == (1, "unfinished", "repair")
    assert entry.files == ("a.safetensors", "b.safetensors", *sorted(t.file for t in CASE.texts))
    for work in (lambda: undo(ROOT, fs=fs), lambda: apply(ROOT, CASE.plan_on(disk), fs=fs)):
        with pytest.raises(UnfinishedError, match="interrupted; it must be settled first"):
            work()
    assert recover(ROOT, fs).done is Done.ROLLED_BACK
    assert hot(ROOT, fs) is None
    assert history(ROOT, fs) == []
    assert recover(ROOT, fs).done is Done.UNCHANGED


@pytest.mark.parametrize("version", [1, 2])
def test_a_journal_of_an_earlier_version_is_read(version, monkeypatch):
    monkeypatch.setattr(frame, "VERSION", version)
    disk = complete()
    assert stored(disk)[8] == version
    monkeypatch.undo()
    fs = MemoryFs(disk)
    undo(ROOT, fs=fs)
    assert content(disk) == BEFORE
    assert bytes(disk.inodes[disk.names[ROOT / ".audit" / "000002.journal"]].content[8:12]) == b"\3\0\0\0"


def test_tables_of_the_second_version_are_read(monkeypatch):
    case = cases()["rescaled megabytes"]
    disk = case.disk()
    monkeypatch.setattr(frame, "VERSION", 2)
    apply(ROOT, case.plan_on(disk), fs=MemoryFs(disk))
    monkeypatch.undo()
    assert stored(disk)[8] == 2
    assert content(disk) == case.after()
    undo(ROOT, fs=MemoryFs(disk))
    assert content(disk) == case.files


def test_the_first_version_had_no_tables(monkeypatch):
    case = cases()["rescaled"]
    disk = case.disk()
    plan = case.plan_on(disk)
    monkeypatch.setattr(frame, "VERSION", 1)
    with pytest.raises(DamagedJournalError, match="out of place"):
        apply(ROOT, plan, fs=MemoryFs(disk))
    assert content(disk) == case.files


class Lossy(MemoryFs):
    """One byte of a journal reaches the disk as another."""

    lost = -1

    def pwrite(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        raw, part = bytearray(content), self.disk.names.get(ROOT / ".audit" / "000001.part")
        if 0 <= self.lost - offset < len(raw) and self.fds[fd].number == part:
            raw[self.lost - offset] ^= 1
        return super().pwrite(fd, bytes(raw), offset)


@pytest.mark.parametrize("name", ["rescaled", "rescaled megabytes", "three shards"])
def test_a_journal_that_does_not_read_back_stops_the_repair(name):
    case = cases()[name]
    disk = case.disk()
    apply(ROOT, case.plan_on(disk), fs=MemoryFs(disk))
    size, rng = len(stored(disk)), random.Random(3)
    for lost in [12, 40, size - 70, size - 1, *(rng.randrange(size) for _ in range(12))]:
        disk = case.disk()
        fs = Lossy(disk)
        fs.lost = lost
        with pytest.raises(DamagedJournalError):
            apply(ROOT, case.plan_on(disk), fs=fs)
        assert content(disk) == case.files
        assert history(ROOT, MemoryFs(disk)) == []


def test_a_table_is_journalled_instead_of_new_bytes():
    case = cases()["rescaled megabytes"]
    disk = case.disk()
    apply(ROOT, case.plan_on(disk), fs=MemoryFs(disk))
    assert content(disk) == case.after()
    assert len(stored(disk)) < 1.01 * (1 << 20) + 4096
    undo(ROOT, fs=MemoryFs(disk))
    assert content(disk) == case.files


def test_any_byte_of_a_journal_with_tables_flipped():
    case, rng = cases()["rescaled"], random.Random(9)
    disk = case.disk()
    apply(ROOT, case.plan_on(disk), fs=MemoryFs(disk))
    for at in range(len(stored(disk))):
        hurt = copy_of(disk)
        stored(hurt)[at] ^= rng.randrange(1, 256)
        fs = MemoryFs(hurt)
        try:
            recover(ROOT, fs)
            undo(ROOT, fs=fs)
        except RepairError:
            assert content(hurt) == case.after(), f"byte {at}"
        else:
            assert content(hurt) == case.files, f"byte {at}"


def foreign(case: Case) -> Disk:
    """Another checkpoint into which the journal was copied."""
    disk = case.disk()
    MemoryFs(disk).mkdir(ROOT / ".audit")
    disk.put(JOURNAL, bytes(stored(START)))
    return disk


def test_a_journal_of_a_checkpoint_with_other_sizes():
    disk = foreign(Case({}, {A: 65, B: 64}))
    with pytest.raises(ForeignJournalError, match=r"is of other files: a\.safetensors: holds"):
        recover(ROOT, MemoryFs(disk))


def test_a_journal_of_a_checkpoint_with_another_header():
    case = Case({}, {A: 64, B: 64}, CASE.texts)
    case.files[A] = case.files[A].replace(b'"w"', b'"v"')
    with pytest.raises(ForeignJournalError, match="its header is not the one"):
        recover(ROOT, MemoryFs(foreign(case)))


def test_a_journal_of_a_checkpoint_without_the_shard():
    with pytest.raises(ForeignJournalError, match="not there"):
        recover(ROOT, MemoryFs(foreign(Case({}, {A: 64}))))


def test_a_journal_of_a_checkpoint_with_other_weights():
    case = Case({}, {A: 64, B: 64}, CASE.texts)
    case.files[B] = case.files[B][:-61] + bytes(61)
    before = dict(case.files)
    disk = foreign(case)
    with pytest.raises(ChangedError, match=r"b\.safetensors: offset \d+: neither the old nor the new byte"):
        recover(ROOT, MemoryFs(disk))
    assert content(disk) == before


def test_an_older_journal_that_is_not_complete():
    disk = copy_of(FINISHED)
    fs = MemoryFs(disk)
    undo(ROOT, fs=fs)
    stored(disk)[-24:] = bytes(24)
    for work in (lambda: recover(ROOT, fs), lambda: undo(ROOT, fs=fs)):
        with pytest.raises(DamagedJournalError, match="others followed it"):
            work()


def test_history_tells_what_was_undone_by_what():
    disk = copy_of(FINISHED)
    fs = MemoryFs(disk)
    undo(ROOT, fs=fs)
    assert [(e.kind, e.of, e.undone_by) for e in history(ROOT, fs)] == [("repair", None, 2), ("undo", 1, None)]
    with pytest.raises(RepairError, match="entry 1 is undone already, by entry 2"):
        undo(ROOT, 1, fs=fs)
    undo(ROOT, fs=fs)
    assert content(disk) == AFTER
    shown = [(e.kind, e.of, e.undone_by) for e in history(ROOT, fs)]
    assert shown == [("repair", None, None), ("undo", 1, 3), ("undo", 2, None)]
    undo(ROOT, 1, fs=fs)
    assert content(disk) == BEFORE
    with pytest.raises(RepairError, match="no entry 9"):
        undo(ROOT, 9, fs=fs)
