"""The files a new checkpoint is made from: watched, bounded in number, and only read."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from auditor.checkpoint import Checkpoint, open_checkpoint
from quant.errors import RepairError
from repair.make import sources as module
from repair.make.folder import make
from repair.make.sources import Sources
from tests.raw import raw, shard_bytes
from tests.repair.make import longjob
from tests.repair.make.test_process import content

A, B = "model-00000.safetensors", "model-00001.safetensors"


@pytest.fixture
def source(tmp_path):
    return longjob.write_source(tmp_path / "src", shards=2, nbytes=1024)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    other.rename(path)


def written(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")


CHANGES = {
    "touched": lambda path: os.utime(path, ns=(5, 5)),
    "written to": written,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "replaced": replaced,
    "gone": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [2500, 4000, 6000])
@pytest.mark.parametrize("name", [A, B])
def test_a_source_that_changes_while_it_is_read(source, tmp_path, change, at, name):
    """At whatever moment, and whichever it is: what was made keeps its unfinished name."""
    once = threading.Event()

    def meddle(done: int, total: int) -> None:
        if done >= at and not once.is_set():
            once.set()
            CHANGES[change](source / name)

    with pytest.raises(RepairError, match=rf"{name}: (changed while it was read|ends at offset)"):
        make(longjob.job(source), tmp_path / "new", progress=meddle)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.incomplete" / "config.json").exists()
    if (name, at) == (A, 2500):
        assert not (tmp_path / "new.incomplete" / A).exists(), "a shard that was made meanwhile counts as finished"


@pytest.mark.parametrize("change", ["cut", "longer", "gone"])
def test_a_source_that_changed_since_it_was_looked_at(source, change):
    checkpoint = open_checkpoint(source)
    CHANGES[change](source / B)
    with pytest.raises(RepairError, match=f"{B}: changed while it was read: (is gone|has )"):
        Sources(checkpoint)


def test_another_header_of_the_same_length(source):
    checkpoint = open_checkpoint(source)
    (source / B).write_bytes((source / B).read_bytes().replace(b'"1.c"', b'"1.d"'))
    with pytest.raises(RepairError, match=f"{B}: changed while it was read: has another header"):
        Sources(checkpoint)


def test_digests_tell_sizes_times_and_headers_apart(source, tmp_path):
    def digests() -> dict[str, str]:
        with Sources(open_checkpoint(source)) as sources:
            return sources.identity()

    seen = [digests()]
    assert seen[0] == digests()
    for change in ("touched", "longer"):
        CHANGES[change](source / A)
        seen.append(digests())
    assert len({digest[A] for digest in seen}) == 3
    assert len({digest[B] for digest in seen}) == 1


def test_reads_stay_inside_the_tensor(source):
    checkpoint = open_checkpoint(source)
    ref = checkpoint.tensors["0.a"]
    with Sources(checkpoint) as sources:
        assert sources.read(ref, 0, 4) == bytes(at * 31 & 255 for at in range(4))
        for at, length in ((-1, 2), (0, 1025), (1024, 1), (3, -1)):
            with pytest.raises(RepairError, match="lie outside the tensor"):
                sources.read(ref, at, length)


def many(root: Path, count: int) -> Checkpoint:
    root.mkdir()
    for number in range(count):
        (root / f"{number:04}.safetensors").write_bytes(shard_bytes({f"t{number}": raw("U8", [number & 255] * 8)}))
    return open_checkpoint(root)


def test_more_shards_than_files_may_be_open(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, len(os.listdir("/proc/self/fd")) + 400), hard))
    try:
        checkpoint = many(tmp_path / "src", 600)
        with Sources(checkpoint) as sources:
            assert len(sources.names) == 600
            for _ in range(2):
                for number in range(600):
                    ref = checkpoint.tensors[f"t{number}"]
                    assert sources.read(ref, 0, 8) == bytes([number & 255]) * 8
            sources.expect_unchanged()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lent_shard_is_not_closed_by_other_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 2)
    checkpoint = many(tmp_path / "src", 12)

    def one(number: int) -> bool:
        ref = checkpoint.tensors[f"t{number % 12}"]
        with sources.lent(ref.shard) as file:
            first = file.read(ref.start, 4)
            for other in range(12):
                sources.read(checkpoint.tensors[f"t{other}"], 0, 1)
            return first + file.read(ref.start + 4, 4) == bytes([number % 12]) * 8

    with Sources(checkpoint) as sources, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(200)))
        assert len(sources._open) <= 2 + 8


def test_another_file_is_not_opened_under_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 1)
    checkpoint = many(tmp_path / "src", 3)
    with Sources(checkpoint) as sources:
        replaced(tmp_path / "src" / "0000.safetensors")
        with pytest.raises(RepairError, match=r"0000.safetensors: changed while it was read: is another file"):
            sources.read(checkpoint.tensors["t0"], 0, 1)


def test_stray_shards_are_not_served(source):
    (source / "stray.safetensors").write_bytes((source / A).read_bytes())
    index = {"metadata": {}, "weight_map": {f"{n}.{x}": (A, B)[n] for n in range(2) for x in "abc"}}
    (source / "model.safetensors.index.json").write_text(__import__("json").dumps(index))
    assert open_checkpoint(source).served() == {A, B}


def test_links_into_a_hub_cache_are_read(source, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    source.rename(blobs)
    snapshot.mkdir()
    for number, path in enumerate(sorted(blobs.iterdir())):
        (snapshot / path.name).symlink_to(f"../blobs/{path.rename(blobs / f'{number:x}').name}")
    before = content(blobs)
    make(longjob.job(snapshot), tmp_path / "new")
    assert content(blobs) == before
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
