"""A crash at any call leaves every file, once settled, exactly before or exactly after: all of them together."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from repair.apply import apply, hot, recover, undo
from tests.repair.memory import ROOT as M
from tests.repair.memory import Crash, Disk, MemoryFs
from tests.repair.plans import Case, cases

HOW = ["drop", "keep", "tear", "mix", "mix", "kill"]
Work = Callable[[MemoryFs], object]
CASES = cases()


def content(disk: Disk) -> dict[str, bytes]:
    return {name: raw for name, (raw, _) in disk.files().items()}


def calls_of(disk: Disk, work: Work) -> int:
    fs = MemoryFs(disk.crashed(random.Random(0), "kill"))
    work(fs)
    return len(fs.calls)


def crash(disk: Disk, work: Work, at: int) -> Disk:
    """The disk at the moment of the ``at``-th call."""
    fs = MemoryFs(disk.crashed(random.Random(0), "kill"), dies=at)
    with pytest.raises(Crash):
        work(fs)
    return fs.disk


def settled(disk: Disk, before: dict[str, bytes], after: dict[str, bytes], note: object) -> dict[str, bytes]:
    """Recover, and expect all of before or all of after, on the disk too."""
    fs = MemoryFs(disk)
    recover(M, fs)
    found = content(disk)
    assert found in (before, after), note
    assert all(mode & 0o7777 == 0o644 for _, mode in disk.files().values()), note
    assert hot(M, fs) is None, note
    dropped = disk.crashed(random.Random(0), "drop")
    assert content(dropped) == found, f"{note}: what was settled was not on the disk"
    assert hot(M, MemoryFs(dropped)) is None, f"{note}: what was settled comes back"
    return found


def sweep(start: Disk, work: Work, before: dict[str, bytes], after: dict[str, bytes], again: bool = True) -> int:
    """Crash at every call in every way; the number of disks that were settled."""
    count, ends = calls_of(start, work), set()
    ways = HOW if sum(map(len, before.values())) < 1 << 19 else ["mix", "kill"]
    for at in range(count):
        died = crash(start, work, at)
        for number, how in enumerate(ways):
            disk = died.crashed(random.Random(f"{at} {number}"), how)
            note = f"call {at} of {count}, {how}"
            found = settled(disk, before, after, note)
            ends.add(found == after)
            if again and found == before:
                work(MemoryFs(disk))
                assert content(disk) == after, f"{note}: the second try went wrong"
    assert ends == {False, True}
    return count * len(ways)


def done(disk: Disk, *works: Work) -> Disk:
    for work in works:
        work(MemoryFs(disk))
    return disk.crashed(random.Random(0), "drop")  # what is done is on the disk


@pytest.mark.parametrize("name", CASES)
def test_repair_that_crashes_at_any_call(name):
    case = CASES[name]
    plan = case.plan_on(case.disk())
    sweep(case.disk(), lambda fs: apply(M, plan, fs=fs), case.files, case.after())


@pytest.mark.parametrize("name", CASES)
def test_undo_that_crashes_at_any_call(name):
    case = CASES[name]
    plan = case.plan_on(case.disk())
    start = done(case.disk(), lambda fs: apply(M, plan, fs=fs))
    assert content(start) == case.after()
    sweep(start, lambda fs: undo(M, 1, fs=fs), case.after(), case.files)


@pytest.mark.parametrize("name", ["two shards", "shards and texts", "three texts", "many bytes"])
def test_undo_of_an_undo_that_crashes_at_any_call(name):
    case = CASES[name]
    plan = case.plan_on(case.disk())
    start = done(case.disk(), lambda fs: apply(M, plan, fs=fs), lambda fs: undo(M, fs=fs))
    assert content(start) == case.files
    sweep(start, lambda fs: undo(M, fs=fs), case.files, case.after())


@pytest.mark.parametrize("name", [n for n in CASES if "mega" not in n])
def test_recovery_that_crashes_at_any_call(name):
    case = CASES[name]
    plan = case.plan_on(case.disk())
    before, after = case.files, case.after()
    count = calls_of(case.disk(), lambda fs: apply(M, plan, fs=fs))
    for at in range(count):
        died = crash(case.disk(), lambda fs: apply(M, plan, fs=fs), at)
        for number, how in enumerate(["mix", "kill"]):
            disk = died.crashed(random.Random(f"{at} {number}"), how)
            for inner in range(calls_of(disk, lambda fs: recover(M, fs))):
                twice = crash(disk, lambda fs: recover(M, fs), inner)
                rng = random.Random(f"{at} {number} {inner}")
                for again in ("drop", "mix", "kill"):
                    settled(twice.crashed(rng, again), before, after, (at, how, inner, again))


def test_repair_after_a_killed_one_that_crashes_in_turn():
    """The system stays up when a process is killed: what it left unsynced must not be built upon."""
    case = Case({"a.safetensors": [(1, 2)]}, {"a.safetensors": 64})
    plan = case.plan_on(case.disk())
    count = calls_of(case.disk(), lambda fs: apply(M, plan, fs=fs))
    for at in range(count):
        disk = crash(case.disk(), lambda fs: apply(M, plan, fs=fs), at).crashed(random.Random(0), "kill")
        if hot(M, MemoryFs(disk)) is not None:
            continue
        now = content(disk)
        work: Work = (lambda fs: undo(M, fs=fs)) if now == case.after() else (lambda fs: apply(M, plan, fs=fs))
        sweep(disk, work, now, case.files if now == case.after() else case.after(), again=False)


def test_writes_that_take_seven_bytes_at_a_time():
    case = CASES["scattered lengths"]
    plan = case.plan_on(case.disk())

    def work(fs: MemoryFs) -> None:
        fs.short = True
        apply(M, plan, fs=fs)

    sweep(case.disk(), work, case.files, case.after())
