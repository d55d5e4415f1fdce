"""What lies beside the weights comes along, whatever it is called; what cannot, is told."""

from __future__ import annotations

import os
import stat

import pytest

from auditor.checkpoint import open_checkpoint
from repair.make.carry import to_carry
from repair.make.folder import make
from repair.osfs import REAL
from repair.walking import LeftOut, walk
from tests.repair.make import longjob
from tests.repair.make.test_process import content

ODD = ["a b.txt", "new\nline.json", "bell\x07.md", "ünïcode.py", "-rf", "x.part", "config.json.part", "sub/deep/er.txt"]


@pytest.fixture
def source(tmp_path):
    return longjob.write_source(tmp_path / "src", shards=1, nbytes=64)


def carried(source, tmp_path):
    made = make(longjob.job(source), tmp_path / "new")
    return made.carried, content(tmp_path / "new")


def test_odd_names_and_modes(source, tmp_path):
    for number, name in enumerate(ODD):
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        (source / name).write_bytes(name.encode())
        (source / name).chmod(0o600 + number)
    (source / "locked").write_bytes(b"x")
    (source / "locked").chmod(0o440)
    told, found = carried(source, tmp_path)
    assert told.files == sorted([*ODD, "locked", "tokenizer.json"])
    assert told.left_out == []
    for number, name in enumerate(ODD):
        assert found[name] == name.encode()
        assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o600 + number
    assert stat.S_IMODE((tmp_path / "new" / "locked").stat().st_mode) == 0o640  # its owner may write it
    assert told.nbytes == sum(len(found[name]) for name in told.files)


def test_weights_and_second_copies_are_left_out(source, tmp_path):
    for name in (
        "original/model.safetensors", "original/config.json", "original/deep/params.json", "metal/model.bin",
        "onnx/model.onnx", "pytorch_model.bin", "pytorch_model.bin.index.json", "x.gguf", "notes/a.txt",
        "consolidated.safetensors.index.json", "UNFINISHED.x", ".git/config", ".cache/x", ".gitattributes",
    ):  # fmt: skip
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        (source / name).write_bytes(b"{}")
    index = {"weight_map": {f"0.{x}": "model-00000.safetensors" for x in "abc"}}
    (source / "model.safetensors.index.json").write_text(__import__("json").dumps(index))
    (source / "stray.safetensors").write_bytes((source / "model-00000.safetensors").read_bytes())
    found = to_carry(REAL, source, {"model-00000.safetensors", "config.json", "model.safetensors.index.json"})
    assert found.files == ["notes/a.txt", "tokenizer.json"]
    told = {line.partition(": ")[0] for line in found.left_out}
    assert told == {"original", "metal", "onnx", "pytorch_model.bin", "pytorch_model.bin.index.json", "x.gguf",
                    "consolidated.safetensors.index.json", "UNFINISHED.x", ".git", ".cache", ".gitattributes",
                    "stray.safetensors"}  # fmt: skip


def test_stray_shards_are_told(source, tmp_path):
    """One that no index names is no part of the checkpoint, and not passed over in silence."""
    (source / "model-00000.safetensors").rename(source / "model.safetensors")
    (source / "stray.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    assert open_checkpoint(source).stray == ["stray.safetensors"]
    job = longjob.job(source)
    kept = tuple(shard for shard in job.shards if shard.name == "model.safetensors")
    made = make(type(job)(job.kind, job.options, job.sources, kept, job.texts, job.row), tmp_path / "new")
    assert made.carried.left_out == ["stray.safetensors: weights, or an index of them, that were not read"]
    assert sorted(content(tmp_path / "new")) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_is_no_file_does_not_hang(source, tmp_path):
    os.mkfifo(source / "pipe")
    (source / "zero").symlink_to("/dev/zero")
    (source / "dangling").symlink_to("nowhere")
    (source / "circle").symlink_to(".")
    (source / "loop").symlink_to("loop")
    told, found = carried(source, tmp_path)
    assert sorted(found) == ["config.json", "model-00000.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    assert [line.partition(":")[0] for line in told.left_out] == ["circle", "dangling", "loop", "pipe", "zero"]


def test_links_to_files_become_files(source, tmp_path):
    (tmp_path / "blob").write_bytes(b"vocabulary")
    (source / "vocab.json").symlink_to("../blob")
    _, found = carried(source, tmp_path)
    assert found["vocab.json"] == b"vocabulary"
    assert not (tmp_path / "new" / "vocab.json").is_symlink()


def test_a_walk_leaves_the_folder_by_no_link(source, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"x")
    (source / "link").symlink_to(tmp_path / "outside")
    left: list[LeftOut] = []
    assert sorted(map(str, walk(REAL, source, left))) == ["config.json", "model-00000.safetensors", "tokenizer.json"]
    assert list(map(str, left)) == ["link: neither a file nor a folder of its own"]


def test_a_file_that_went_from_the_source_is_told_when_resumed(source, tmp_path):
    (source / "more.txt").write_bytes(b"x")
    (tmp_path / "new.incomplete").mkdir()
    job = longjob.job(source)
    (source / "late").mkdir()
    import repair.make.folder as folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder._Growing, "_expect_ours", lambda self: (_ for _ in ()).throw(OSError("stopped")))
        with pytest.raises(Exception, match="stopped"):
            make(job, tmp_path / "new", resume=True)
    (source / "more.txt").unlink()
    with pytest.raises(Exception, match=r"holds 'more.txt', which was not made here"):
        make(longjob.job(source), tmp_path / "new", resume=True)
