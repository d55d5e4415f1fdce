"""The power goes at any call: the new folder is whole or not there, and what is left can be gone on with."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from quant.errors import RepairError
from repair.make.folder import make
from tests.repair.make.growing import DST, SRC, WORK, content, disk, expected, job
from tests.repair.memory import Crash, Disk, MemoryFs

HOW = ["drop", "keep", "tear", "mix", "mix", "mix", "kill"]


def run(fs: MemoryFs, resume: bool = False) -> int:
    return make(job(fs), DST, resume, fs=fs).resumed


def attempt(fs: MemoryFs, resume: bool = False) -> tuple[int, str]:
    """Shards that were there, and why it was refused."""
    try:
        return run(fs, resume), ""
    except RepairError as error:
        return 0, str(error)


def calls(start: Disk, resume: bool = False) -> list[str]:
    fs = MemoryFs(start.crashed(random.Random(0), "kill"))
    run(fs, resume)
    return fs.calls


def crashes(start: Disk, resume: bool = False, ways: list[str] = HOW) -> Iterator[tuple[str, Disk]]:
    """Every disk that a crash may leave."""
    count = len(calls(start, resume))
    for at in range(count):
        fs = MemoryFs(start.crashed(random.Random(0), "kill"), dies=at)
        with pytest.raises(Crash):
            run(fs, resume)
        for number, how in enumerate(ways):
            yield f"call {at} of {count}, {how}", fs.disk.crashed(random.Random(f"{at} {number}"), how)


def expect_sound(left: Disk, note: str) -> None:
    """Nothing half-written may be taken for a checkpoint."""
    whole = expected()
    assert content(left, DST) in (None, whole), note
    work = content(left, WORK)
    if work is not None and {"config.json", "model.safetensors.index.json"} & work.keys():
        assert whole.keys() - work.keys() <= {"config.json", "model.safetensors.index.json"}, note
        assert all(work[name] == raw for name, raw in whole.items() if name in work), note
    if work is not None and "UNFINISHED.json" not in work and work:
        ours = {name: raw for name, raw in work.items() if not name.startswith("UNFINISHED.")}
        assert ours in (whole, {}), note
    source = content(disk(), SRC)
    assert content(left, SRC) == source, note


def settle(left: Disk, note: str) -> str:
    """Go on: what is there is whole, becomes whole, or is refused by name."""
    if DST in left.names:
        with pytest.raises(RepairError, match="is there already"):
            run(MemoryFs(left), resume=True)
        return "whole"
    resumed = run(MemoryFs(left), resume=True)
    later = left.crashed(random.Random(0), "drop")  # what is done is on the disk
    assert content(left, DST) == content(later, DST) == expected(), note
    assert WORK not in left.names, note
    assert not [path for path in left.names if path.name.endswith(".lock")], note
    return f"resumed {resumed}"


def test_without_a_crash():
    fs = MemoryFs(disk())
    made = make(job(fs), DST, fs=fs)
    assert content(fs.disk, DST) == expected()
    assert content(fs.disk.crashed(random.Random(0), "drop"), DST) == expected()
    assert [(row.tensor, row.number, row.exact) for row in made.rows] == [("one", 24, True), ("new", 96, False)]
    assert (made.shards, made.resumed, made.carried.files) == (2, 0, sorted(made.carried.files))
    assert made.nbytes == sum(len(expected()[name]) for name in ("a.safetensors", "b.safetensors"))


def test_crash_at_any_call():
    ends = set()
    for note, left in crashes(disk()):
        expect_sound(left, note)
        ends.add(settle(left, note))
    assert ends == {"whole", "resumed 0", "resumed 1", "resumed 2"}


@pytest.mark.parametrize("step", [67, pytest.param(1, marks=pytest.mark.slow)])
def test_crash_of_the_resumed_run(step):
    """From disks that a kill leaves, and from some that a power failure leaves."""
    ends = set()
    for number, (note, left) in enumerate(crashes(disk(), ways=["kill", "mix"])):
        if DST in left.names or (number % step and number not in (4, 12)):  # before the folder's, the note's sync
            continue
        for inner, again in crashes(left, resume=True, ways=["mix", "kill"]):
            expect_sound(again, f"{note}; {inner}")
            ends.add(settle(again, f"{note}; {inner}"))
    assert {"whole", "resumed 1"} <= ends


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_call_that_fails(code, lasting):
    count = len(calls(disk()))
    for at in range(count):
        fs = MemoryFs(disk(), fails=dict.fromkeys(range(at, count + 9) if lasting else [at], code))
        _, why = attempt(fs)
        swallowed = fs.calls[at].startswith("unlink new.incomplete.lock")  # all is done by then
        assert "made to fail" in why or swallowed, fs.calls[at]
        fs.fails = {}
        expect_sound(fs.disk, str(at))
        settle(fs.disk.crashed(random.Random(at), "mix"), str(at))
        settle(fs.disk, str(at))


def test_short_writes():
    fs = MemoryFs(disk(), short=True)
    run(fs)
    assert content(fs.disk, DST) == expected()


def test_the_disk_is_full_told_beforehand():
    fs = MemoryFs(disk(), room=16 << 20)
    with pytest.raises(RepairError, match=r"^/m/new: 607 bytes are to be written, but only 16,777,216 are free$"):
        run(fs)
    assert set(content(fs.disk, WORK) or ()) == {"UNFINISHED.json"}
    fs.room += 607
    run(fs, resume=True)
    assert content(fs.disk, DST) == expected()
