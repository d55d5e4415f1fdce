"""Shards that are written side by side: the same folder, rows in order, and the first failure ends all."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from quant.errors import RepairError
from repair.make.folder import make
from repair.make.job import Job
from repair.make.shard import Fill, NewShard, Row
from repair.shardheader import Entry
from tests.repair.make import longjob

SHARDS, SIZE = 7, 4096


def job(source: Path, tasks: dict[int, object] | None = None) -> Job:
    """Seven shards of one tensor; ``tasks``: other tasks for some of them."""

    def task(number: int):
        return lambda: iter([Fill(f"t{number}", 0, bytes([number]) * SIZE), Row(f"t{number}")])

    shards = tuple(
        NewShard(f"s{n}.safetensors", (Entry(f"t{n}", "U8", (SIZE,)),), ((tasks or {}).get(n, task(n)),))
        for n in range(SHARDS)
    )
    return replace(longjob.job(source), shards=shards, row=Row)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return longjob.write_source(tmp_path / "src", 1, 1 << 12)


@pytest.mark.parametrize("jobs", [2, 3, 16])
def test_the_same_folder_with_any_number_of_threads(source, tmp_path, jobs):
    one = make(job(source), tmp_path / "one")
    told = []
    many = make(job(source), tmp_path / "many", jobs=jobs, progress=lambda *now: told.append(now))
    assert one.rows == many.rows == [Row(f"t{n}") for n in range(SHARDS)]
    assert content(tmp_path / "one") == content(tmp_path / "many")
    assert told == sorted(told)
    assert told[-1] == (many.nbytes, many.nbytes)


@pytest.mark.parametrize("bad", range(SHARDS))
def test_one_that_fails_ends_the_others_and_what_is_finished_is_kept(source, tmp_path, bad):
    failed = threading.Event()

    def fails():
        failed.set()
        raise RepairError("no more")
        yield

    def waits(number: int):
        def pieces():
            if number > bad:
                assert failed.wait(10)
            yield Fill(f"t{number}", 0, bytes([number]) * SIZE)
            yield Row(f"t{number}")

        return pieces

    tasks = {n: fails if n == bad else waits(n) for n in range(SHARDS)}
    with pytest.raises(RepairError, match="no more"):
        make(job(source, tasks), tmp_path / "new", jobs=2)
    assert not (tmp_path / "new").exists()
    whole = make(job(source), tmp_path / "whole")
    resumed = make(job(source), tmp_path / "new", resume=True, jobs=2)
    assert resumed.resumed >= max(0, bad - 2)
    assert resumed.rows == whole.rows
    assert content(tmp_path / "new") == content(tmp_path / "whole")
