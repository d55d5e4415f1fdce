"""A shard written, synced and closed, as a new folder does it."""

from __future__ import annotations

from pathlib import Path

from repair.make.shard import NewShard, Row, put_shard
from repair.osfs import Fs


def write_shard(fs: Fs, target: Path, shard: NewShard, jobs: int = 1) -> list[Row]:
    rows, file = put_shard(fs, target, shard, jobs, behind=jobs > 1)
    with file:
        file.sync()
    return rows
