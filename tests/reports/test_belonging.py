from __future__ import annotations

import os
from pathlib import Path

import pytest

from quant.errors import UsageError
from reports import belonging


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "report.json", "sub/notes.txt"):
        (folder / name).write_text(name)
    return folder


def refused(target: Path, *read: Path, made: Path | None = None) -> str:
    try:
        belonging.expect_free(target, "-o", read, made)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["config.json", "report.json", "sub/notes.txt", "sub/../config.json", "./config.json"])
def test_no_file_of_a_checkpoint_is_written_over(model: Path, name: str) -> None:
    read = model, model / "model.safetensors", Path(os.path.relpath(model))
    for one in read:
        assert "is a file of" in refused(model / name, one)
    assert not refused(model / name), "of a checkpoint that is not read"
    assert not refused(model / "new.json", model)


def test_links_have_no_other_side(model: Path, tmp_path: Path) -> None:
    (tmp_path / "soft").symlink_to(model / "config.json")
    os.link(model / "config.json", tmp_path / "hard")
    (tmp_path / "folder").symlink_to(model)
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_text("a shard")
    (model / "other.safetensors").symlink_to(blob)  # as in a download cache
    for target in (tmp_path / "soft", tmp_path / "hard", tmp_path / "folder" / "config.json", blob):
        assert "is a file of" in refused(target, model), target
    assert refused(model / "config.json", tmp_path / "folder")
    snapshot = tmp_path / "linked.safetensors"
    snapshot.symlink_to(model / "model.safetensors")
    assert refused(model / "config.json", snapshot)
    assert refused(tmp_path / "soft", model / "model.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors", "X.SafeTensors", "model.safetensors.index.json"])
def test_a_shard_is_never_written(tmp_path: Path, name: str) -> None:
    assert "never of a report" in refused(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert refused(tmp_path / "link")


def test_a_folder_that_is_to_be_made_stays_as_it_is_made(model: Path, tmp_path: Path) -> None:
    for name in ("out", "out/config.json", "model/../out/a"):
        assert "which is to be made" in refused(tmp_path / name, model, made=tmp_path / "out")
    assert not refused(tmp_path / "out.json", model, made=tmp_path / "out")
    assert not refused(Path("/dev/null"), model)
    assert not refused(tmp_path / "elsewhere.json", tmp_path / "gone", model)


def test_whose_settings_they_are(model: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    assert belonging.owner(project / "audit.toml", [model]) is None
    assert belonging.owner(project / "audit.toml", [project]) == project
    assert belonging.owner(project / "audit.toml", [tmp_path]) == tmp_path
    assert belonging.owner(model / "audit.toml", []) == model
    assert belonging.owner(model / "sub" / "audit.toml", []) == model
    (project / "audit.toml").symlink_to(model / "sub" / "notes.txt")
    assert belonging.owner(project / "audit.toml", []) == model
    (tmp_path / "stray.safetensors").write_text("left by somebody")
    assert belonging.owner(project / "pyproject.toml", []) is None
    assert belonging.owner(tmp_path / "pyproject.toml", []) == tmp_path
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert belonging.owner(project / "pyproject.toml", []) == tmp_path
