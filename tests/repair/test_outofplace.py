"""A repaired copy has the planned bytes and no others; the original is never touched, the copy whole or unnamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quant.errors import RepairError
from repair.apply import apply
from repair.content import Computed
from repair.osfs import REAL
from repair.outofplace import repaired_copy
from repair.patch import Patch, Plan, plan_for
from repair.refusals import ChangedError, SharedFileError
from repair.rewrite import Change, New, rewrite_shard
from tests.repair.plans import A, B, cases, data_start

CASES = cases()
W = np.arange(24, dtype=np.float32).reshape(4, 6)


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("link", [False, True])
def test_every_plan(tmp_path, name, link):
    case = CASES[name]
    root = case.on_disk(tmp_path / "model")
    (root / "sub").mkdir()
    (root / "sub" / "more.txt").write_text("more")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
    done = repaired_copy(root, case.plan(root), tmp_path / "out", link=link)
    assert content(tmp_path / "out") == {**case.after(), "sub/more.txt": b"more"}
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
    assert not (tmp_path / "out.incomplete").exists()
    changed = {p.file for p in case.patches} | {t.file for t in case.texts if t.new is not None}
    assert set(done.patched) == changed
    assert set(done.linked) == ({"tokenizer.json", "sub/more.txt", *case.files} - changed - {t.file for t in case.texts}
                                if link else set())  # fmt: skip
    for name in changed:
        assert (tmp_path / "out" / name).stat().st_nlink == 1


def test_linked_files_are_refused_in_place(tmp_path):
    case = CASES["second shard only"]
    root = case.on_disk(tmp_path / "model")
    repaired_copy(root, case.plan(root), tmp_path / "out", link=True)
    one = data_start(case.files[A])
    plan = plan_for(tmp_path / "out", [Patch(A, one, case.files[A][one : one + 1], b"?", "w", "SCL101")])
    with pytest.raises(SharedFileError, match="1 other name"):
        apply(tmp_path / "out", plan)


def test_from_a_download_cache(tmp_path):
    case = CASES["shard and config"]
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    case.on_disk(blobs)
    snapshot.mkdir(parents=True)
    for name in case.files:
        (blobs / name).chmod(0o444)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (snapshot / ".audit").mkdir()
    (snapshot / "more").symlink_to(tmp_path)
    done = repaired_copy(snapshot, case.plan(snapshot), tmp_path / "out")
    assert content(tmp_path / "out") == case.after()
    assert content(blobs) == case.files
    assert {str(one.path) for one in done.left_out} == {".audit", "more"}
    for path in (tmp_path / "out").iterdir():
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o200


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("nowhere"), os.mkfifo, lambda path: path.symlink_to(path)]
)
@pytest.mark.parametrize("name", ["config.json", "sub/tokenizer.model"])
def test_a_copy_without_a_file_is_no_copy(tmp_path, name, make):
    """A link that leads nowhere is what an interrupted download leaves."""
    case = CASES["second shard only"]
    root = case.on_disk(tmp_path / "model")
    (root / "sub").mkdir()
    plan = case.plan(root)
    (root / name).unlink(missing_ok=True)
    make(root / name)
    with pytest.raises(RepairError, match=f"{name}: neither a file nor a folder"):
        repaired_copy(root, plan, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_refusals(tmp_path):
    case = CASES["shards and texts"]
    root = case.on_disk(tmp_path / "model")
    plan = case.plan(root)
    (tmp_path / "there").mkdir()
    with pytest.raises(RepairError, match="there: is there already"):
        repaired_copy(root, plan, tmp_path / "there")
    (tmp_path / "half.incomplete").mkdir()
    with pytest.raises(RepairError, match=r"half\.incomplete: is there already"):
        repaired_copy(root, plan, tmp_path / "half")
    with pytest.raises(RepairError, match="lies inside the checkpoint"):
        repaired_copy(root, plan, root / "out")
    with pytest.raises(RepairError, match="out: cannot be made: No such file"):
        repaired_copy(root, plan, tmp_path / "no" / "out")
    raw = bytearray(case.files[B])
    raw[case.patches[1].offset] ^= 1
    (root / B).write_bytes(raw)
    with pytest.raises(ChangedError, match=rf"{B}: w: offset \d+: not the old bytes"):
        repaired_copy(root, plan, tmp_path / "out")
    assert not (tmp_path / "out.incomplete").exists()
    case.on_disk(root)
    (root / "config.json").write_text("{}")
    with pytest.raises(ChangedError, match=r"config\.json: changed since"):
        repaired_copy(root, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_copy_that_fails_halfway_has_no_name(tmp_path, monkeypatch):
    case = CASES["three shards"]
    root = case.on_disk(tmp_path / "model")
    real, calls = REAL.fsync, []

    def fail(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(REAL, "fsync", fail)
    with pytest.raises(RepairError, match="No space left on device"):
        repaired_copy(root, case.plan(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert content(root) == case.files


def shard(path: Path) -> dict[str, np.ndarray]:
    tensors = {"a": W, "s": np.array([0.5], np.float16), "z": np.array(3, np.int32)}
    save_file(tensors, path, {"format": "pt"})
    return tensors


def test_rewritten_shard(tmp_path):
    shard(tmp_path / "x.safetensors")
    one = np.float32(0.5).tobytes()
    changes = {
        "s": Change(dtype="F32", shape=(), content=one, beside=(New("t", "U8", (2,), b"\1\2"),)),
        "a": Change(shape=(24,)),
        "z": Change(content=Computed(4, lambda at, n: b"\7\0\0\0"[at : at + n])),
    }
    size = rewrite_shard(tmp_path / "x.safetensors", tmp_path / "y.safetensors", changes)
    assert size == (tmp_path / "y.safetensors").stat().st_size
    found = load_file(tmp_path / "y.safetensors")
    assert set(found) == {"a", "s", "t", "z"}
    np.testing.assert_array_equal(found["a"], W.reshape(-1))
    assert found["s"].dtype == np.float32
    assert found["s"].shape == ()
    assert found["s"] == 0.5
    assert found["t"].tolist() == [1, 2]
    assert found["z"] == 7
    raw = (tmp_path / "y.safetensors").read_bytes()
    assert data_start(raw) % 8 == 0
    assert b'"__metadata__":{"format":"pt"}' in raw


def test_shard_rewritten_without_a_change_is_the_same(tmp_path):
    shard(tmp_path / "x.safetensors")
    rewrite_shard(tmp_path / "x.safetensors", tmp_path / "y.safetensors", {})
    same = [hashlib.sha256((tmp_path / f"{n}.safetensors").read_bytes()).digest() for n in "xy"]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"q": Change(dtype="F32")}, "has no tensor q"),
        ({"s": Change(dtype="F32")}, r"s: F32 \[1\] needs 4 bytes, 2 given"),
        ({"s": Change(dtype="F99")}, "dtype 'F99' is unknown"),
        ({"s": Change(content=b"123")}, "needs 2 bytes, 3 given"),
        ({"s": Change(beside=(New("z", "U8", (1,), b"1"),))}, "two tensors would be called"),
        ({"s": Change(beside=(New("__metadata__", "U8", (1,), b"1"),))}, "would be called"),
    ],
)
def test_change_that_does_not_fit(tmp_path, changes, match):
    shard(tmp_path / "x.safetensors")
    with pytest.raises(RepairError, match=match):
        rewrite_shard(tmp_path / "x.safetensors", tmp_path / "y.safetensors", changes)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_patched_and_rewritten_in_one_go(tmp_path):
    root = tmp_path / "model"
    root.mkdir()
    shard(root / "x.safetensors")
    raw = (root / "x.safetensors").read_bytes()
    at = raw.index(W.tobytes())
    plan = plan_for(root, [Patch("x.safetensors", at, raw[at : at + 4], np.float32(9).tobytes(), "a", "NUM101")])
    done = repaired_copy(root, plan, tmp_path / "out", {"x.safetensors": {"s": Change(dtype="BF16")}})
    raw = (tmp_path / "out" / "x.safetensors").read_bytes()
    assert np.float32(9).tobytes() + W.tobytes()[4:] in raw
    assert b'"s":{"dtype":"BF16"' in raw
    assert os.listdir(tmp_path / "out") == ["x.safetensors"]
    assert (done.patched, done.rewritten) == (["x.safetensors"], ["x.safetensors"])
    only = repaired_copy(root, Plan(), tmp_path / "two", {"x.safetensors": {"s": Change(dtype="BF16")}})
    assert only.rewritten == ["x.safetensors"]
