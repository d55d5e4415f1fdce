"""The crash harness notices what it is there for: each promise of the disk that is broken is caught."""

from __future__ import annotations

import pytest

from quant.errors import RepairError
from tests.repair import test_crash
from tests.repair.memory import MemoryFs
from tests.repair.plans import cases
from tests.repair.test_crash import M, apply, sweep


def run(name: str) -> None:
    case = cases()[name]
    plan = case.plan_on(case.disk())
    sweep(case.disk(), lambda fs: apply(M, plan, fs=fs), case.files, case.after())


@pytest.mark.parametrize("name", ["two shards", "config alone"])
def test_files_never_synced(monkeypatch, name):
    monkeypatch.setattr(MemoryFs, "fsync", lambda self, fd: self._call("fsync"))
    with pytest.raises((AssertionError, RepairError)):
        run(name)


@pytest.mark.parametrize("name", ["two shards", "three texts"])
def test_folders_never_synced(monkeypatch, name):
    monkeypatch.setattr(MemoryFs, "fsync_folder", lambda self, path: self._call("fsync_folder"))
    with pytest.raises(AssertionError):
        run(name)


def test_only_the_hidden_folder_synced(monkeypatch):
    real = MemoryFs.fsync_folder

    def some(self: MemoryFs, path: object) -> None:
        real(self, path) if path != M else self._call("fsync_folder")

    monkeypatch.setattr(MemoryFs, "fsync_folder", some)
    with pytest.raises(AssertionError):
        run("many bytes")


def test_shards_never_synced(monkeypatch):
    real = MemoryFs.fsync

    def some(self: MemoryFs, fd: int) -> None:
        shard = any(p.suffix == ".safetensors" and n == self.fds[fd].number for p, n in self.disk.names.items())
        self._call("fsync") if shard else real(self, fd)

    monkeypatch.setattr(MemoryFs, "fsync", some)
    with pytest.raises(AssertionError):
        run("one byte")


def test_newest_mark_not_made_to_last(monkeypatch):
    monkeypatch.setattr("repair.journal.Journal.sync", lambda self: None)
    with pytest.raises(Exception, match=r"others followed it|comes back"):
        test_crash.test_repair_after_a_killed_one_that_crashes_in_turn()


def test_patches_before_the_journal_has_its_name(monkeypatch):
    from repair import inplace
    from repair.ledger import Ledger

    real = Ledger.instate

    def early(self: Ledger, number: int) -> object:
        self.fs.rename(self.part(number), self.place(number))  # named, and not yet on the disk
        inplace.put(self, self.journal(number), inplace.Side.NEW)
        self.fs.rename(self.place(number), self.part(number))
        return real(self, number)

    monkeypatch.setattr(Ledger, "instate", early)
    with pytest.raises(AssertionError):
        run("two shards")


def test_a_recovery_that_does_nothing(monkeypatch):
    monkeypatch.setattr("tests.repair.test_crash.recover", lambda root, fs: None)
    with pytest.raises(AssertionError):
        run("many bytes")
