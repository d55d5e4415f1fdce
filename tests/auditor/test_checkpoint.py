"""Folders, indices and links: what is read, what is used, what is kept for the rules."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from auditor import checkpoint as checkpoints
from auditor.checkpoint import is_file_name, open_checkpoint
from quant.errors import CheckpointError
from tests.auditor.shards import layer, read_index, sound, write_index, write_sharded

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sharded(tmp_path, {A: ["m.gate_proj"], B: ["m.up_proj"]})
    return tmp_path


def test_a_folder_is_read_whole(root: Path) -> None:
    (root / "config.json").write_text('{"model_type": "llama"}')
    found = open_checkpoint(root)
    assert found.whole
    assert list(found.shards) == [A, B]
    assert len(found.tensors) == 8
    assert found.index is not None
    assert found.index.total_size == 2 * 80
    assert found.config == {"model_type": "llama"}
    assert found.bytes_held == sum((root / name).stat().st_size for name in (A, B))
    headers = sum(shard.header.data_start for shard in found.shards.values())
    assert found.bytes_read == headers
    assert not any([found.missing, found.stray, found.unopened, found.duplicates, found.config_problems])


def test_one_shard_is_read_alone(root: Path) -> None:
    found = open_checkpoint(root / B)
    assert (found.whole, list(found.shards), found.index) == (False, [B], None)


def test_an_index_names_what_is_read(root: Path) -> None:
    (root / "other.safetensors").write_bytes(sound(layer("x")))
    found = open_checkpoint(root / "model.safetensors.index.json")
    assert (found.whole, list(found.shards)) == (True, [A, B])


def test_a_snapshot_of_links_is_read(root: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "rev"
    blobs = tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate((A, B, "model.safetensors.index.json")):
        (root / name).rename(blobs / f"hash{number}")
        (snapshot / name).symlink_to(f"../../blobs/hash{number}")
    found = open_checkpoint(snapshot)
    assert list(found.shards) == [A, B]
    assert not found.unopened


@pytest.mark.parametrize("name", ["nothing", "a\0b", "x" * 300])
def test_what_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"(?i)no such file|name too long"):
        open_checkpoint(tmp_path / name)


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        open_checkpoint(tmp_path)
    (tmp_path / "x.bin").touch()
    os.mkfifo(tmp_path / "x.safetensors")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("x.bin", "x.safetensors", "loop"):
        with pytest.raises(CheckpointError, match="neither a folder"):
            open_checkpoint(tmp_path / name)


def test_an_unreadable_index_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a JSON list"):
        open_checkpoint(tmp_path / "model.safetensors.index.json")


def test_a_folder_that_may_not_be_listed_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_checkpoint(root)


def test_missing_shards_count_their_tensors(root: Path) -> None:
    (root / B).unlink()
    assert open_checkpoint(root).missing == {B: 4}


def test_of_two_copies_the_one_the_index_names_is_used(root: Path) -> None:
    (root / A).write_bytes(sound(layer("m.gate_proj") | {"m.up_proj.input_scale": ("F32", [1])}))
    found = open_checkpoint(root)
    assert found.tensors["m.up_proj.input_scale"].shard == B
    assert [(used.shard, other.shard) for used, other in found.duplicates] == [(B, A)]
    content = read_index(root)
    content["weight_map"]["m.up_proj.input_scale"] = A
    write_index(root, **content)
    assert open_checkpoint(root).tensors["m.up_proj.input_scale"].shard == A


def test_copies_in_stray_files_are_not_duplicates(root: Path) -> None:
    (root / "a-stray.safetensors").write_bytes(sound(layer("m.gate_proj")))
    found = open_checkpoint(root)
    assert found.stray == ["a-stray.safetensors"]
    assert not found.duplicates
    assert found.tensors["m.gate_proj.weight"].shard == A


def test_shards_of_a_second_index_are_not_stray(root: Path) -> None:
    (root / "consolidated-1.safetensors").write_bytes(sound(layer("m.gate_proj")))
    (root / "consolidated.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(layer("m.gate_proj"), "consolidated-1.safetensors")})
    )
    found = open_checkpoint(root)
    assert [index.file for index in found.other_indices] == ["consolidated.safetensors.index.json"]
    assert not any([found.stray, found.duplicates])


def test_beside_a_single_file_others_are_stray(tmp_path: Path) -> None:
    for name in ("model.safetensors", "extra.safetensors"):
        (tmp_path / name).write_bytes(sound(layer("m")))
    assert open_checkpoint(tmp_path).stray == ["extra.safetensors"]


@pytest.mark.parametrize("value", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "a\0", "x" * 256])
def test_values_that_are_no_file_names(value: str) -> None:
    assert not is_file_name(value)


def test_nothing_unsafe_is_opened(root: Path) -> None:
    content = read_index(root)
    content["weight_map"] |= {"x": "../secret.safetensors", "y": 7}
    write_index(root, **content)
    (root.parent / "secret.safetensors").write_bytes(sound(layer("secret")))
    found = open_checkpoint(root)
    assert found.index is not None
    assert found.index.unsafe == {"x": "'../secret.safetensors'", "y": "a JSON int"}
    assert list(found.shards) == [A, B]


@pytest.mark.parametrize("total", ["1e999", "NaN", "true", '"7"', "-1e300", "null", "[]"])
def test_an_odd_total_size_is_no_number(root: Path, total: str) -> None:
    content = json.dumps(read_index(root) | {"metadata": {"total_size": "?"}}).replace('"?"', total)
    (root / "model.safetensors.index.json").write_text(content)
    found = open_checkpoint(root)
    assert found.index is not None
    assert found.index.total_size is None


def test_the_number_of_tensors_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_TENSORS", 3)
    found = open_checkpoint(root)
    assert list(found.shards) == [A]
    assert "hold over 3 tensors" in found.unopened[B]
