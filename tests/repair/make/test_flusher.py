"""Shards that are synced while they are written: the same bytes, and a sync that failed is never passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quant.errors import RepairError
from repair.make import shard
from repair.make.shard import Fill, NewShard
from repair.osfs import RealFs
from repair.shardheader import Entry
from tests.repair.make.writing import write_shard

SIZE, COUNT = 1 << 12, 40


def new(count: int = COUNT) -> NewShard:
    entries = tuple(Entry(f"t{i:02}", "U8", (SIZE,)) for i in range(count))
    tasks = tuple(lambda i=i: iter([Fill(f"t{i:02}", 0, bytes([i]) * SIZE)]) for i in range(count))
    return NewShard("x.safetensors", entries, tasks)


class Failing(RealFs):
    """The disk gives out at the n-th sync; later ones succeed, as the system's do."""

    def __init__(self, at: int) -> None:
        self.at, self.syncs = at, 0

    def fsync(self, fd: int) -> None:
        self.syncs += 1
        if self.syncs == self.at:
            raise OSError(5, os.strerror(5))
        super().fsync(fd)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_FLUSH", 2 * SIZE)


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_bytes_are_the_same(tmp_path: Path, jobs: int) -> None:
    fs = Failing(0)
    write_shard(fs, tmp_path / "x", new(), jobs)
    content = (tmp_path / "x").read_bytes()
    assert content[-COUNT * SIZE :] == b"".join(bytes([i]) * SIZE for i in range(COUNT))
    assert fs.syncs == 1 if jobs == 1 else fs.syncs >= 2


@pytest.mark.parametrize("at", [1, 2])
def test_a_sync_that_failed_is_told(tmp_path: Path, at: int) -> None:
    fs = Failing(at)
    with pytest.raises(RepairError, match="could not be written to the disk"):
        write_shard(fs, tmp_path / "x", new(), jobs=2)
    assert fs.syncs >= at
