"""A plan from elsewhere must do what it says, to the files it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quant.errors import RepairError
from repair.apply import apply
from repair.patch import FileState, Patch, Plan, TextPatch, plan_for
from repair.recheck import recheck
from repair.refusals import ChangedError, SharedFileError
from tests.repair.plans import A, B, cases

CASE = cases()["shards and texts"]


def test_old_then_new(tmp_path):
    root = CASE.on_disk(tmp_path / "model")
    plan = CASE.plan(root)
    assert recheck(root, plan)
    assert not (root / ".audit").exists()
    apply(root, plan)
    assert not recheck(root, plan)


def test_tensor_that_is_not_the_one_patched(tmp_path):
    root = CASE.on_disk(tmp_path / "model")
    plan = CASE.plan(root)
    with pytest.raises(RepairError, match="v: no such tensor in the file"):
        recheck(root, replace(plan, patches=(plan.patches[0]._replace(tensor="v"),)))


def test_refusals_are_those_of_the_repair(tmp_path):
    root = CASE.on_disk(tmp_path / "model")
    plan = CASE.plan(root)
    (root / A).rename(tmp_path / A)
    with pytest.raises(ChangedError, match=f"{A}: is not there any more"):
        recheck(root, plan)
    (root / A).symlink_to(tmp_path / A)
    with pytest.raises(SharedFileError):
        recheck(root, plan)


STATE = {A: FileState(100, 0, "", 20)}


def patch(offset: int, old: bytes = b"a", new: bytes = b"b", file: str = A) -> Patch:
    return Patch(file, offset, old, new, "w", "SCL101")


@pytest.mark.parametrize(
    ("patches", "match"),
    [
        ([patch(19)], "lies in the header, which ends at 20"),
        ([patch(100)], "past the end of the file at 100"),
        ([patch(99, b"ab", b"cd")], "past the end"),
        ([patch(50, b"ab", b"c")], "2 bytes cannot become 1"),
        ([patch(50, b"", b"")], "the patch has no bytes"),
        ([patch(50), patch(50)], r"overlaps the patch of w at 50\.\.51"),
        ([patch(51), patch(50, b"ab", b"cd")], r"overlaps the patch of w at 50\.\.52"),
        ([patch(50, file=B)], "does not say what the file was"),
    ],
)
def test_plans_that_cannot_be(patches, match):
    with pytest.raises(RepairError, match=match):
        Plan(tuple(patches), files=STATE)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/a.safetensors", "..", "", "a\0b", "x/a.safetensors", "config.json"]
)
def test_files_that_are_no_shards_of_the_folder(name):
    with pytest.raises(RepairError, match="not a"):
        Plan(files={name: STATE[A]})


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", "", ".audit", ".hidden", A])
def test_texts_that_are_no_texts_of_the_folder(name):
    with pytest.raises(RepairError):
        Plan(texts=(TextPatch(name, b"a", b"b", "CFG101"),))


def test_plans_are_sorted_and_known_by_their_bytes(tmp_path):
    root = CASE.on_disk(tmp_path / "model")
    plan = plan_for(root, reversed(CASE.patches), reversed(CASE.texts))
    assert plan == CASE.plan(root)
    assert plan.identity() == CASE.plan(root).identity()
    other = replace(plan, patches=(plan.patches[0]._replace(new=b"zz"), *plan.patches[1:]))
    assert other.identity() != plan.identity()
