"""A call that fails: the repair is taken back at once, or a journal is left that can be settled."""

from __future__ import annotations

import contextlib
import errno
import random

import pytest

from quant.errors import RepairError
from repair.apply import Done, apply, hot, recover, undo
from tests.repair.memory import ROOT, Disk, MemoryFs
from tests.repair.plans import cases

NAMES = ["two shards", "shards and texts", "three texts", "scattered lengths"]
CASES = cases()


def content(disk: Disk) -> dict[str, bytes]:
    return {name: raw for name, (raw, _) in disk.files().items()}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", NAMES)
def test_one_call_fails(name, code):
    case = CASES[name]
    before, after = case.files, case.after()
    fs = MemoryFs(case.disk())
    apply(ROOT, case.plan_on(fs.disk), fs=fs)
    for at in range(len(fs.calls)):
        disk = case.disk()
        failing = MemoryFs(disk, fails={at: code})
        with contextlib.suppress(RepairError):  # some calls may fail: the journal is there, only its lock is unnamed
            apply(ROOT, case.plan_on(disk), fs=failing)
        fs2 = MemoryFs(disk)
        if hot(ROOT, fs2) is not None:
            recover(ROOT, fs2)
        assert content(disk) in (before, after), at
        assert content(disk.crashed(random.Random(at), "drop")) == content(disk), at
        if content(disk) == before:
            assert apply(ROOT, case.plan_on(disk), fs=fs2).done is Done.APPLIED
        undo(ROOT, fs=fs2)
        assert content(disk) == before, at


@pytest.mark.parametrize("name", NAMES)
def test_every_call_fails_from_one_on(name):
    """The disk is full, and stays so: also taking back fails where it needs room."""
    case = CASES[name]
    before, after = case.files, case.after()
    fs = MemoryFs(case.disk())
    apply(ROOT, case.plan_on(fs.disk), fs=fs)
    for at in range(len(fs.calls)):
        disk = case.disk()
        failing = MemoryFs(disk, fails=dict.fromkeys(range(at, 1000), errno.ENOSPC))
        with pytest.raises(RepairError):
            apply(ROOT, case.plan_on(disk), fs=failing)
        later = disk.crashed(random.Random(at), "mix")
        recover(ROOT, MemoryFs(later))
        assert content(later) in (before, after), at


def test_error_names_file_and_offset():
    case = CASES["two shards"]
    fs = MemoryFs(case.disk())
    apply(ROOT, case.plan_on(fs.disk), fs=fs)
    synced = fs.calls.index("rename 000001.part 000001.journal") + 2
    at = next(n for n, call in enumerate(fs.calls) if n > synced and call.startswith("pwrite"))
    disk = case.disk()
    with pytest.raises(RepairError, match=r"^a\.safetensors: writing at offset \d+: made to fail$"):
        apply(ROOT, case.plan_on(disk), fs=MemoryFs(disk, fails={at: errno.EIO}))
    assert content(disk) == case.files
    assert hot(ROOT, MemoryFs(disk)) is None
