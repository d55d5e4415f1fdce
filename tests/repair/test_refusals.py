"""What is never patched in place, with the reason; nothing is written when a repair is refused."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from quant.errors import RepairError
from repair.apply import Done, Proof, apply, history, undo
from repair.content import Shared, Stored
from repair.osfs import REAL
from repair.patch import Plan, plan_for
from repair.refusals import ChangedError, ReadOnlyError, SharedFileError, UnfinishedError
from tests.repair.plans import CONFIG, CONFIG_TEXT, MADE, A, B, Case, cases

TWO = Case({A: [(1, 2)], B: [(3, 4)]}, {A: 64, B: 64}, [CONFIG_TEXT, MADE])


def sums(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir()) if p.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return TWO.on_disk(tmp_path / "model")


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("proof", Proof)
def test_every_plan_on_a_real_disk(tmp_path, name, proof):
    case = cases()[name]
    root = case.on_disk(tmp_path / "model")
    before = sums(root)
    outcome = apply(root, case.plan(root), proof)
    assert outcome.done is Done.APPLIED
    assert {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()} == case.after()
    assert apply(root, case.plan(root), proof).done is Done.UNCHANGED
    assert [entry.number for entry in history(root)] == [1]
    undo(root, proof=proof)
    assert sums(root) == before
    undo(root)
    assert {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()} == case.after()


def test_modes_stay_and_times_are_honest(root):
    os.chmod(root / A, 0o640)
    os.chmod(root / CONFIG, 0o600)
    os.utime(root / A, (1, 1))
    os.utime(root / "tokenizer.json", (1, 1))
    start = time.time() - 5
    apply(root, TWO.plan(root))
    assert (root / A).stat().st_mode & 0o7777 == 0o640
    assert (root / CONFIG).stat().st_mode & 0o7777 == 0o600
    assert (root / A).stat().st_mtime > start
    assert (root / "tokenizer.json").stat().st_mtime == 1
    os.utime(root / A, (1, 1))
    undo(root)
    assert (root / A).stat().st_mtime > start
    assert (root / CONFIG).stat().st_mode & 0o7777 == 0o600


def refused(root: Path, plan: Plan, kind: type[RepairError], match: str) -> None:
    before = sums(root)
    with pytest.raises(kind, match=match):
        apply(root, plan)
    assert sums(root) == before
    assert history(root) == []
    left = root / ".audit"
    assert not left.exists() or os.listdir(left) == ["lock"]


@pytest.mark.parametrize("name", [A, B, CONFIG])
def test_symbolic_link(root, tmp_path, name):
    plan = TWO.plan(root)
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    refused(root, plan, SharedFileError, f"{name}: a symbolic link to .*--out")


def test_link_into_a_download_cache(tmp_path):
    blobs = tmp_path / "models--owner--name" / "blobs"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    TWO.on_disk(snapshot)
    plan = TWO.plan(snapshot)
    refused(snapshot, plan, SharedFileError, "lies in a download cache")
    blobs.mkdir()
    model = tmp_path / "model"
    TWO.on_disk(model)
    for name in (A, B):
        (model / name).rename(blobs / name)
        (model / name).symlink_to(blobs / name)
    refused(model, plan, SharedFileError, f"{A}: a link into a download cache")
    (tmp_path / "way").symlink_to(snapshot)
    refused(tmp_path / "way", plan, SharedFileError, "lies in a download cache")


def test_a_folder_that_is_reached_through_a_link_is_no_harm(root, tmp_path):
    (tmp_path / "way").symlink_to(root)
    assert apply(tmp_path / "way", TWO.plan(root)).done is Done.APPLIED


@pytest.mark.parametrize("name", [A, CONFIG])
def test_hard_link(root, tmp_path, name):
    os.link(root / name, tmp_path / "second")
    refused(root, TWO.plan(root), SharedFileError, rf"{name}: its bytes have 1 other name \(hard links\)")


@pytest.mark.parametrize("name", [A, CONFIG])
def test_read_only_file(root, name):
    os.chmod(root / name, 0o444)
    refused(root, TWO.plan(root), ReadOnlyError, f"{name}: the file is read-only")


def test_read_only_folder(root):
    plan = TWO.plan(root)
    os.chmod(root, 0o555)
    refused(root, plan, ReadOnlyError, "the folder is read-only")
    os.chmod(root, 0o755)


def test_not_a_regular_file(root):
    plan = TWO.plan(root)
    (root / B).unlink()
    os.mkfifo(root / B)
    with pytest.raises(RepairError, match=f"{B}: not a regular file"):
        apply(root, plan)


def test_missing_file(root):
    plan = TWO.plan(root)
    (root / B).unlink()
    refused(root, plan, ChangedError, f"{B}: is not there any more")


def poke(path: Path, offset: int, raw: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(raw)] = raw
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 1])
def test_any_old_byte_that_changed(root, place):
    plan = TWO.plan(root)
    patch = plan.patches[place]
    poke(root / patch.file, patch.end - 1, bytes([patch.old[-1] ^ 0x80]))
    refused(root, plan, ChangedError, rf"{patch.file}: w: offset {patch.end - 1}: found 0x.., the plan expects 0x")


def test_changed_header_size_and_text(root):
    plan = TWO.plan(root)
    poke(root / A, 12, b"x")
    refused(root, plan, ChangedError, f"{A}: its header is not the one")
    TWO.on_disk(root)
    (root / B).write_bytes(TWO.files[B] + b"more")
    refused(root, plan, ChangedError, f"{B}: holds 140 bytes, 136")
    TWO.on_disk(root)
    (root / CONFIG).write_bytes(b"{}")
    refused(root, plan, ChangedError, f"{CONFIG}: holds other content")
    TWO.on_disk(root)
    (root / MADE.file).write_bytes(b"{}")
    refused(root, plan, ChangedError, f"{MADE.file}: is there: it changed")


def test_touched_file_is_noted_only(root):
    plan = TWO.plan(root)
    os.utime(root / A, (1, 1))
    assert apply(root, plan).notes == (f"{A}: touched since the plan was made; its old bytes are all there",)


def test_half_of_the_new_bytes_are_there_already(root):
    plan = TWO.plan(root)
    poke(root / A, plan.patches[0].offset, plan.patches[0].new)
    refused(root, plan, ChangedError, f"{A}: w: offset")


def test_undo_when_the_new_bytes_are_gone(root):
    plan = TWO.plan(root)
    apply(root, plan)
    patch = plan.patches[1]
    poke(root / B, patch.offset, bytes([patch.new[0] ^ patch.old[0] ^ 0xFF]))
    before = sums(root)
    with pytest.raises(ChangedError, match=f"{B}: w: offset {patch.offset}"):
        undo(root)
    assert sums(root) == before


def test_old_bytes_known_by_their_hash(root):
    at = TWO.patches[0].offset
    old = Stored(Shared(root / A), at, 2, hashlib.sha256(TWO.patches[0].old).hexdigest())
    plan = plan_for(root, [TWO.patches[0]._replace(old=old)])
    poke(root / A, at, b"??")
    refused(root, plan, ChangedError, f"{A}: w: bytes {at}..{at + 2} changed since the plan")
    TWO.on_disk(root)
    apply(root, plan)
    assert (root / A).read_bytes() == TWO.after()[A]
    with pytest.raises(RepairError, match="need their sha256"):
        plan_for(root, [TWO.patches[0]._replace(old=Stored(Shared(root / A), at, 2))])


def test_hidden_folder_is_something_else(root, tmp_path):
    plan = TWO.plan(root)
    (root / ".audit").write_text("mine")
    with pytest.raises(RepairError, match=r"\.audit: not a folder"):
        apply(root, plan)
    (root / ".audit").unlink()
    (root / ".audit").symlink_to(tmp_path)
    with pytest.raises(RepairError, match=r"\.audit: not a folder"):
        apply(root, plan)


def test_nothing_to_undo(root):
    with pytest.raises(RepairError, match="no repair is recorded here"):
        undo(root)
    assert not (root / ".audit").exists()


def test_what_was_written_is_read_back(root, monkeypatch):
    """A disk that loses a write: the repair is taken back before it is called complete."""
    plan = TWO.plan(root)
    before = sums(root)
    real, lost = REAL.pwrite, []

    def lossy(fd: int, content: bytes, offset: int) -> int:
        if not lost and content == plan.patches[1].new:
            lost.append(offset)
            return len(content)
        return real(fd, content, offset)

    monkeypatch.setattr(REAL, "pwrite", lossy)
    with pytest.raises(RepairError, match=rf"what was written is not there: {B}: w: offset"):
        apply(root, plan)
    assert lost
    assert sums(root) == before


def test_full_proof_sees_a_byte_that_nobody_planned(root, monkeypatch):
    plan = TWO.plan(root)
    before = sums(root)
    real = REAL.pwrite

    def stray(fd: int, content: bytes, offset: int) -> int:
        if content == plan.patches[0].new:
            real(fd, b"!", plan.files[A].size - 1)
        return real(fd, content, offset)

    monkeypatch.setattr(REAL, "pwrite", stray)
    with pytest.raises(RepairError, match=f"{A}: bytes that the plan leaves alone changed"):
        apply(root, plan, Proof.FULL)
    after = sums(root)
    assert after.pop(A) != before.pop(A)  # no journal knows of the stray byte
    assert after == before


def test_mark_that_cannot_be_written_is_said(root, monkeypatch):
    from repair.journal import Journal

    def fail(self: Journal) -> None:
        raise RepairError("no")

    monkeypatch.setattr(Journal, "complete", fail)
    with pytest.raises(UnfinishedError, match="all bytes are written, but not the mark"):
        apply(root, TWO.plan(root))
