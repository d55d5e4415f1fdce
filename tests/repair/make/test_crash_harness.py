"""The crash harness notices what it is there for: each promise that is broken is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.errors import RepairError
from repair.make import folder, notes
from repair.make.notes import Notes
from tests.repair.make.growing import DST, WORK
from tests.repair.make.test_crash import test_crash_at_any_call as sweep
from tests.repair.memory import ROOT, MemoryFs


def caught() -> None:
    with pytest.raises((AssertionError, RepairError)):
        sweep()


def test_files_never_synced(monkeypatch):
    monkeypatch.setattr(MemoryFs, "fsync", lambda self, fd: self._call("fsync"))
    caught()


@pytest.mark.parametrize("which", [ROOT, WORK, None])
def test_folders_never_synced(monkeypatch, which):
    real = MemoryFs.fsync_folder

    def some(self: MemoryFs, path: Path) -> None:
        self._call("fsync_folder") if which in (None, path) else real(self, path)

    monkeypatch.setattr(MemoryFs, "fsync_folder", some)
    caught()


def test_shards_named_before_they_are_synced(monkeypatch):
    real = MemoryFs.fsync

    def early(self: MemoryFs, fd: int) -> None:
        path = next((p for p, n in self.disk.names.items() if n == self.fds[fd].number), None)
        shard = path is not None and bytes(self.fds[fd].content[8:14]) == b'{"__me'
        self._call("fsync") if shard else real(self, fd)

    monkeypatch.setattr(MemoryFs, "fsync", early)
    caught()


def test_shards_written_under_their_own_name(monkeypatch):
    monkeypatch.setattr(folder, "part_of", lambda shard: shard)
    caught()


def test_the_folder_named_before_its_files_are_there(monkeypatch):
    real = Notes.put

    def late(self: Notes, name: str, raw: bytes) -> None:
        real(self, name, raw)
        if name == "model.safetensors.index.json":
            self.fs.rename(WORK, DST)
            self.work = DST

    monkeypatch.setattr(Notes, "put", late)
    caught()


def test_texts_left_beside_missing_shards(monkeypatch):
    monkeypatch.setattr(folder._Growing, "expect_room", lambda self: self._notes.put("config.json", b"{}"))
    caught()


def test_a_note_that_is_not_kept(monkeypatch):
    monkeypatch.setattr(Notes, "sync", lambda self: None)
    caught()


def test_records_before_their_shards(monkeypatch):
    real = Notes.instate

    def late(self: Notes, name: str, part: str = notes.PART) -> None:
        if name.endswith(".safetensors"):
            self.fs.rename(self.work / part, self.work / name)
        else:
            real(self, name, part)

    monkeypatch.setattr(Notes, "instate", late)
    monkeypatch.setattr(Notes, "record", lambda self, shard, rows: None)
    caught()
