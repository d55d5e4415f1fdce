"""Any bytes end in findings or in one CheckpointError: in time, in bounded memory, inside the folder."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor import engine
from auditor.audit import Depth
from auditor.checkpoint import Checkpoint
from benchmarks import hostile, oversized
from benchmarks.fuzz import BIG_MEMORY, Watch, judge, mutate, outside, scan_apart
from tests.auditor.shards import file_bytes, sound

WATCH = Watch()
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ORDINARY_MEMORY = 120 << 20


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("name", sorted(hostile.CASES))
def test_hostile_checkpoints(tmp_path: Path, name: str, depth: Depth) -> None:
    hostile.CASES[name](tmp_path)
    assert judge(tmp_path, depth, WATCH) == ""


@pytest.mark.parametrize("depth", list(Depth))
def test_the_checkpoint_that_is_mutated_is_sound(tmp_path: Path, depth: Depth) -> None:
    hostile.healthy(tmp_path)
    audit = engine.scan(tmp_path, depth=depth)
    assert not [f for f in audit.findings if f.code.startswith("FIL")]
    assert len(audit.layers) == 4


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mutated")
    hostile.healthy(root)
    return root


@settings(SLOW, max_examples=250)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_mutated_files(healthy: Path, seed: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in healthy.iterdir())))
    true = (healthy / name).read_bytes()
    try:
        (healthy / name).write_bytes(mutate(true, random.Random(seed)))
        assert judge(healthy, data.draw(st.sampled_from(list(Depth))), WATCH) == ""
    finally:
        (healthy / name).write_bytes(true)


@settings(SLOW, max_examples=100)
@given(header=st.binary(max_size=200), data=st.binary(max_size=64), depth=st.sampled_from(list(Depth)))
def test_any_bytes_as_a_shard(healthy: Path, header: bytes, data: bytes, depth: Depth) -> None:
    name = "model-00001-of-00002.safetensors"
    true = (healthy / name).read_bytes()
    try:
        for raw in (header, file_bytes(header, data)):
            (healthy / name).write_bytes(raw)
            assert judge(healthy, depth, WATCH) == ""
    finally:
        (healthy / name).write_bytes(true)


@pytest.mark.parametrize("depth", [Depth.SCALARS, Depth.SCALES, Depth.FULL])
@pytest.mark.parametrize("left", [0, 100, 900])
def test_a_shard_that_shrinks_while_it_is_read(
    tmp_path: Path, depth: Depth, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are listed as skipped; those of other shards are checked."""
    hostile.healthy(tmp_path)
    shrinking = tmp_path / "model-00001-of-00002.safetensors"
    true = engine.open_checkpoint

    def then_shrink(path: Path, earlier: Checkpoint | None) -> Checkpoint:
        found = true(path, earlier)
        os.truncate(shrinking, left)
        return found

    monkeypatch.setattr(engine, "open_checkpoint", then_shrink)
    audit = engine.scan(tmp_path, depth=depth)
    assert audit.errors == ()
    lost = {s.tensor for s in audit.skipped if "ended at offset" in s.reason or "past its end" in s.reason}
    assert lost
    assert all("gate_proj" in name or "up_proj" in name for name in lost)


def test_a_shard_that_vanishes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile.healthy(tmp_path)
    true = engine.open_checkpoint

    def then_remove(path: Path, earlier: Checkpoint | None) -> Checkpoint:
        found = true(path, earlier)
        (tmp_path / "model-00001-of-00002.safetensors").unlink()
        return found

    monkeypatch.setattr(engine, "open_checkpoint", then_remove)
    audit = engine.scan(tmp_path)
    assert audit.errors == ()
    assert any("cannot be opened" in s.reason for s in audit.skipped)


def test_the_watch_sees_every_way_to_open_a_file(tmp_path: Path) -> None:
    outer = tmp_path / "secret"
    outer.touch()
    root = tmp_path / "root"
    root.mkdir()
    with WATCH.on() as opened:
        outer.read_bytes()
        os.close(os.open(os.fsencode(outer), os.O_RDONLY))
        os.close(os.open(root / "../secret", os.O_RDONLY))
    assert len(outside(opened, root)) == 3


@pytest.mark.parametrize("name", ["header_of_one_string", "two_million_tensors"])
def test_files_of_a_hundred_megabytes_stay_within_bounds(tmp_path: Path, name: str) -> None:
    oversized.CASES[name](tmp_path)
    _, complaint, _, memory = scan_apart(name, tmp_path, Depth.FULL)
    assert complaint == ""
    assert 0 < memory < BIG_MEMORY


@pytest.mark.parametrize("depth", [Depth.SCALES, Depth.FULL])
def test_memory_does_not_grow_with_an_ordinary_checkpoint(tmp_path: Path, depth: Depth) -> None:
    stems = [f"model.layers.{i}.mlp.{leaf}" for i in range(12) for leaf in ("gate_proj", "up_proj", "down_proj")]
    rows, columns = 2048, 4096  # 170 MB in all
    tensors = {}
    for stem in stems:
        tensors[f"{stem}.weight"] = ("U8", [rows, columns // 2])
        tensors[f"{stem}.weight_scale"] = ("F8_E4M3", [rows, columns // 16])
    raw = sound(tensors)
    (tmp_path / "model.safetensors").write_bytes(raw)
    _, complaint, _, memory = scan_apart("ordinary", tmp_path, depth)
    assert complaint == ""
    assert memory < ORDINARY_MEMORY < len(raw)
