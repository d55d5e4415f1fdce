"""Where a new checkpoint may grow, what it is resumed from, and what is refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.checkpoint import open_checkpoint
from quant.errors import CheckpointError, RepairError
from repair.make.folder import make
from repair.make.sources import Sources
from repair.osfs import RealFs
from tests.repair.make import longjob
from tests.repair.make.test_process import content

A = "model-00000.safetensors"
B = "model-00001.safetensors"


@pytest.fixture
def source(tmp_path):
    return longjob.write_source(tmp_path / "src", shards=2, nbytes=1024)


def cut_off(source: Path, target: Path, at: int = 4000, options: dict[str, str] | None = None) -> Path:
    """The unfinished folder of a run that stopped once so many bytes were written: behind the first shard."""

    def stop(done: int, total: int) -> None:
        if done >= at:
            raise RepairError("stopped")

    with pytest.raises(RepairError, match="stopped"):
        make(longjob.job(source, options), target, progress=stop)
    return target.with_name(target.name + ".incomplete")


def refused(source: Path, target: Path, resume: bool = True) -> str:
    """Why; nothing is lost and nothing made by it."""
    before = content(target.parent)
    with pytest.raises(RepairError) as caught:
        make(longjob.job(source), target, resume=resume)
    assert content(target.parent) == before
    return str(caught.value)


def test_rows_and_bytes_are_the_same_with_any_number_of_jobs_and_resumed(source, tmp_path):
    whole = make(longjob.job(source), tmp_path / "one")
    assert [row.tensor for row in whole.rows] == ["0.a", "0.b", "0.c", "1.a", "1.b", "1.c"]
    many = make(longjob.job(source), tmp_path / "many", jobs=4)
    work = cut_off(source, tmp_path / "late")
    assert sorted(path.name for path in work.iterdir()) == [
        "UNFINISHED.json", f"UNFINISHED.{A}.json", f"UNFINISHED.{B}.part", A,
    ]  # fmt: skip
    late = make(longjob.job(source), tmp_path / "late", resume=True)
    assert (whole.resumed, late.resumed) == (0, 1)
    assert whole.rows == many.rows == late.rows
    assert content(tmp_path / "one") == content(tmp_path / "many") == content(tmp_path / "late")


def test_the_configuration_comes_last(source, tmp_path, monkeypatch):
    names: list[str] = []
    real = RealFs.rename

    def rename(self: RealFs, a: Path, b: Path) -> None:
        names.append(b.name)
        real(self, a, b)

    monkeypatch.setattr(RealFs, "rename", rename)
    job = longjob.job(source)
    make(replace(job, texts={**job.texts, "hf_quant_config.json": b"{}", "zz.json": b"{}"}), tmp_path / "new")
    assert names[-2:] == ["config.json", "new"]
    assert names[0] == "UNFINISHED.json"
    assert names.index("tokenizer.json") > names.index(B)


def test_progress_reaches_all_bytes(source, tmp_path):
    seen: list[tuple[int, int]] = []
    made = make(longjob.job(source), tmp_path / "new", jobs=3, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (made.nbytes, made.nbytes)
    assert made.nbytes == sum((tmp_path / "new" / name).stat().st_size for name in (A, B))


def test_places(source, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(source)
    for name in ("file", "empty", "dangling", "linked", "src"):
        assert refused(source, tmp_path / name).endswith(f"{name}: is there already; choose another name or remove it")
    assert "is no name" in refused(source, tmp_path / "x.incomplete")
    assert "is no name" in refused(source, tmp_path / "src" / "..")
    with pytest.raises(RepairError, match="is no name"):
        make(longjob.job(source), Path("/"))
    assert "is no name" in refused(source, tmp_path / "a\0b")
    assert "no such folder" in refused(source, tmp_path / "none" / "new")
    assert "no such folder" in refused(source, tmp_path / "file" / "new")
    assert "cannot be made" in refused(source, tmp_path / ("n" * 250))
    assert "lies inside the checkpoint" in refused(source, source / "new")
    assert "lies inside the checkpoint" in refused(source, tmp_path / "linked" / "new")


def test_what_is_in_the_way(source, tmp_path):
    target, work = tmp_path / "new", tmp_path / "new.incomplete"
    work.write_bytes(b"x")
    assert "is in the way, and no folder" in refused(source, target)
    work.unlink()
    work.symlink_to(tmp_path / "src")
    assert "is in the way, and no folder" in refused(source, target)
    work.unlink()
    work.mkdir()
    assert "go on with --resume, or remove it" in refused(source, target, resume=False)
    (work / "model.safetensors").write_bytes(b"mine")
    assert "holds 'model.safetensors' but no UNFINISHED.json: nothing to go on with" in refused(source, target)
    assert (work / "model.safetensors").read_bytes() == b"mine"
    (work / "model.safetensors").unlink()
    make(longjob.job(source), target, resume=True)
    assert not work.exists()


def test_source_inside_the_target(tmp_path):
    (tmp_path / "new.incomplete").mkdir()
    source = longjob.write_source(tmp_path / "new.incomplete" / "src", shards=1, nbytes=64)
    assert "the checkpoint that it would be made from lies inside it" in refused(source, tmp_path / "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to the superuser")
def test_read_only_parent(source, tmp_path):
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o555)
    assert "new.incomplete.lock: cannot be made: Permission denied" in refused(source, parent / "new")


def test_target_that_appears_meanwhile(source, tmp_path):
    target = tmp_path / "new"

    def make_way(done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "mine").write_bytes(b"x")

    with pytest.raises(RepairError, match="new: cannot be given its name"):
        make(longjob.job(source), target, progress=make_way)
    assert content(target) == {"mine": b"x"}


def test_resumed_with_another_job(source, tmp_path):
    target = tmp_path / "new"
    work = cut_off(source, target)
    with pytest.raises(RepairError, match=r"was begun with other options: way 'best', not 'fast'; remove it"):
        make(longjob.job(source, {"way": "fast"}), target, resume=True)
    with pytest.raises(RepairError, match=r"was begun with other options: more None, not '1'"):
        make(longjob.job(source, {"way": "best", "more": "1"}), target, resume=True)
    other = longjob.write_source(tmp_path / "other", shards=3, nbytes=1024)
    with pytest.raises(RepairError, match=rf"was begun with other sources: {A}"):
        make(longjob.job(other), target, resume=True)
    os.utime(source / B, ns=(0, 0))
    with pytest.raises(RepairError, match=rf"was begun with other sources: {B}"):
        make(longjob.job(source), target, resume=True)
    assert (work / A).exists()


def test_a_file_that_is_not_ours(source, tmp_path):
    work = cut_off(source, tmp_path / "new")
    (work / "mine.txt").write_bytes(b"x")
    with pytest.raises(RepairError, match=r"holds 'mine.txt', which was not made here; remove it"):
        make(longjob.job(source), tmp_path / "new", resume=True)
    assert not (work / "config.json").exists()
    assert not (tmp_path / "new").exists()
    (work / "mine.txt").unlink()
    assert make(longjob.job(source), tmp_path / "new", resume=True).resumed == 2


@pytest.mark.parametrize(
    "damage",
    [b"", b"[]", b"{", b"null", b"\xff", b"[" * 100_000, b'{"a": ' * 50_000, b'{"rows": 3, "rows": 4}', b"9" * 9999],
)
@pytest.mark.parametrize("name", ["UNFINISHED.json", f"UNFINISHED.{A}.json"])
def test_hostile_notes(source, tmp_path, name, damage):
    work = cut_off(source, tmp_path / "new")
    (work / name).write_bytes(damage)
    why = refused(source, tmp_path / "new")
    assert why.startswith(f"{work}/{name}: damaged: ")
    assert why.endswith("remove new.incomplete to begin anew")


@pytest.mark.parametrize("name", ["UNFINISHED.json", f"UNFINISHED.{A}.json"])
def test_huge_notes(source, tmp_path, name):
    work = cut_off(source, tmp_path / "new")
    os.truncate(work / name, 1 << 40)
    with pytest.raises(RepairError, match=f"{name}: damaged: {1 << 40} bytes"):
        make(longjob.job(source), tmp_path / "new", resume=True)


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b", "..", "", "a\0b", "UNFINISHED.json", "x" * 300])
def test_names_that_would_leave_the_folder(source, tmp_path, name):
    job = longjob.job(source)
    for odd in (replace(job, shards=(replace(job.shards[0], name=name),)), replace(job, texts={name: b"x"})):
        with pytest.raises(RepairError, match="is no name for a file in it"):
            make(odd, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize("odd", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_notes_that_are_no_files(source, tmp_path, odd):
    work = cut_off(source, tmp_path / "new")
    (work / "UNFINISHED.json").unlink()
    odd(work / "UNFINISHED.json")
    with pytest.raises(RepairError, match=r"UNFINISHED.json: damaged: is no file"):
        make(longjob.job(source), tmp_path / "new", resume=True)


@pytest.mark.parametrize("odd", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_records_that_are_no_files_are_written_again(source, tmp_path, odd):
    work = cut_off(source, tmp_path / "new")
    (work / f"UNFINISHED.{A}.json").unlink()
    odd(work / f"UNFINISHED.{A}.json")
    assert make(longjob.job(source), tmp_path / "new", resume=True).resumed == 0


def test_every_field_of_the_notes(source, tmp_path):
    work = cut_off(source, tmp_path / "new")
    note = json.loads((work / "UNFINISHED.json").read_text())
    for key in note.keys() - {"unfinished"}:
        for value in (None, 3, "x", [], [3], {}, {"a": 1}, [{}], [[]]):
            (work / "UNFINISHED.json").write_text(json.dumps({**note, key: value}))
            assert f"was begun with other {key}" in refused(source, tmp_path / "new")
    (work / "UNFINISHED.json").write_text(json.dumps(note))
    path = work / f"UNFINISHED.{A}.json"
    rows = json.loads(path.read_text())["rows"]
    one = rows[0]
    for bad in (
        None, {}, 3, "x", [3], [None], [{}], [{**one, "nbytes": "x"}], [{**one, "nbytes": True}],
        [{**one, "tensor": 3}], [{**one, "more": 1}], [{"tensor": "0.a"}], [{**one, "nbytes": 1.5}],
    ):  # fmt: skip
        path.write_text(json.dumps({"rows": bad}))
        assert "its rows are not those of this command" in refused(source, tmp_path / "new")
    path.write_text(json.dumps({"rows": rows}))
    assert make(longjob.job(source), tmp_path / "new", resume=True).resumed == 1


def test_a_shard_without_its_record_or_of_another_size_is_written_again(source, tmp_path):
    whole = content(make(longjob.job(source), tmp_path / "whole").folder)
    for number, hurt in enumerate((lambda w: (w / f"UNFINISHED.{A}.json").unlink(), lambda w: (w / A).write_bytes(b"x"),
                                   lambda w: (w / A).unlink())):  # fmt: skip
        target = tmp_path / f"new{number}"
        hurt(cut_off(source, target))
        assert make(longjob.job(source), target, resume=True).resumed == 0
        assert content(target) == whole


def test_cut_off_before_the_folder_has_its_name(source, tmp_path, monkeypatch):
    whole = make(longjob.job(source), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RealFs, "rename", lambda self, a, b: os.replace(a, b if b != tmp_path / "new" else "/no/such"))
        with pytest.raises(RepairError, match="new: cannot be given its name"):
            make(longjob.job(source), tmp_path / "new")
    work, lock = tmp_path / "new.incomplete", tmp_path / "new.incomplete.lock"
    assert content(work) == content(whole.folder)
    told = lock.read_bytes()
    for damage in (b"", b"x" * 99, told.replace(b'"best"', b'"fast"'), told.replace(b'"rows"', b'"wors"')):
        lock.write_bytes(damage)
        why = refused(source, tmp_path / "new") if damage else "no"
        assert "nothing to go on with" in why or "was begun with other options: way 'fast'" in why or not damage
    lock.write_bytes(told)
    os.truncate(work / A, 5)
    assert f"holds no {A} any more" in refused(source, tmp_path / "new")
    (work / A).write_bytes((whole.folder / A).read_bytes())
    made = make(longjob.job(source), tmp_path / "new", resume=True)
    assert (made.rows, made.resumed, made.carried) == (whole.rows, 2, whole.carried)
    assert content(made.folder) == content(whole.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "src", "whole"]


def test_an_unfinished_folder_is_no_checkpoint(source, tmp_path):
    work = cut_off(source, tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"new.incomplete: is unfinished, see its UNFINISHED.json"):
        open_checkpoint(work)
    checkpoint = open_checkpoint(source)
    (source / "UNFINISHED.json").write_text("{}")
    with pytest.raises(RepairError, match="is unfinished itself"):
        Sources(checkpoint)
