"""A repair that was interrupted: nobody takes half-written files for whole ones, and the next repair begins anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quant.errors import CheckpointError, RepairError
from repair.apply import apply
from repair.distance_pairs import pair_up
from repair.make.sources import Sources
from repair.osfs import RealFs
from reports import demo
from reports.cli import app
from tests.repair.mending import hashes, planned

runner = CliRunner()
RISK = "--risk", "guess"
Forge = Callable[[str], Path]


class DiedError(BaseException):
    """The process is gone: nobody catches it."""


class Dying(RealFs):
    """Dies when it is to write to a shard for the ``last`` time, having written half of that."""

    def __init__(self, last: int) -> None:
        self.left, self.shards = last, set()

    def open_write(self, path: Path) -> int:
        fd = super().open_write(path)
        (self.shards.add if path.suffix == ".safetensors" else self.shards.discard)(fd)
        return fd

    def pwrite(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        if fd in self.shards:
            self.left -= 1
            if self.left == 0:
                super().pwrite(fd, content[: len(content) // 2], offset)
        return self._alive(super().pwrite, fd, content, offset)

    def fsync(self, fd: int) -> None:
        self._alive(super().fsync, fd)

    def rename(self, source: Path, target: Path) -> None:
        self._alive(super().rename, source, target)

    def unlink(self, path: Path) -> None:
        self._alive(super().unlink, path)

    def _alive(self, call, *words):  # type: ignore[no-untyped-def]
        if self.left <= 0:
            raise DiedError
        return call(*words)


@pytest.fixture
def forge(unset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forge:
    monkeypatch.chdir(tmp_path)

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        demo.forge(folder)
        return folder

    return make


def half(folder: Path, at: int = 3) -> Path:
    """The folder after a repair that died."""
    plan = planned(folder)[2]
    with pytest.raises(DiedError):
        apply(folder, plan, fs=Dying(at))
    return folder


def audit(*words: str | Path):  # type: ignore[no-untyped-def]
    return runner.invoke(app, [str(word) for word in words])


def test_a_scan_says_so_of_the_folder_and_of_a_shard(forge: Forge) -> None:
    folder = half(forge("m v"))
    for words in (
        (folder,),
        (folder, "--depth", "headers"),
        (next(folder.glob("*.safetensors")), "--select", "FIL119"),
    ):
        done = audit("scan", *words, "--format", "json")
        found = [f for f in json.loads(done.stdout)["findings"] if f["code"] == "FIL119"]
        assert done.exit_code == 1
        assert [(f["severity"], f["tensor"], f["fix"]) for f in found] == [("error", ".audit/000001.journal", None)]
    assert audit("undo", folder).exit_code == 0
    assert "FIL119" not in audit("scan", folder, "--format", "json").stdout


@pytest.mark.parametrize("words", [(), ("--plan", "plan.json"), ("--out", "new"), ("--out", "new", "--write")])
def test_nothing_is_planned_or_copied(forge: Forge, words: tuple[str, ...]) -> None:
    folder = half(forge("m v"))
    before = hashes(folder)
    done = audit("repair", folder, *RISK, *words)
    assert done.exit_code == 3
    assert f"interrupted (.audit/000001.journal); `audit undo '{folder}'` settles it" in " ".join(done.stderr.split())
    assert hashes(folder) == before
    assert sorted(p.name for p in Path().iterdir()) == ["m v"]


def test_nothing_is_made_of_it(forge: Forge) -> None:
    folder, sound = half(forge("model")), forge("sound")
    for sides in ((folder, sound), (sound, folder)):
        with pytest.raises(CheckpointError, match="a repair of it was interrupted"):
            pair_up(*map(str, sides))
    assert audit("compare", sound, folder).exit_code == 3
    done = audit("repair", sound, "--source", folder)
    assert (done.exit_code, "interrupted" in done.stderr) == (3, True)
    from auditor.checkpoint import open_checkpoint

    with pytest.raises(RepairError, match="a repair of it was interrupted"):
        Sources(open_checkpoint(folder))


@pytest.mark.parametrize("at", range(1, 8))
def test_the_next_repair_settles_it_before_it_reads(forge: Forge, at: int) -> None:
    """Wherever it died: what comes of it is what an undisturbed repair gives, and its undo gives all back."""
    folder, other = forge("model"), forge("other")
    before = hashes(folder)
    half(folder, at)
    done, undisturbed = audit("repair", folder, *RISK, "--write"), audit("repair", other, *RISK, "--write")
    assert "was taken back" in done.stderr
    assert (hashes(folder), done.exit_code) == (hashes(other), undisturbed.exit_code)
    assert done.stdout.replace(str(folder), str(other)).splitlines()[:20] == undisturbed.stdout.splitlines()[:20]
    assert audit("undo", folder).exit_code == 0
    assert hashes(folder) == before


def test_one_that_cannot_be_read_is_not_called_complete(forge: Forge) -> None:
    folder = forge("model")
    (folder / ".audit").mkdir()
    os.mkfifo(folder / ".audit" / "000007.journal")
    (folder / ".audit" / "notes").write_text("COMPLETE" + "0" * 16)
    done = audit("scan", folder, "--select", "FIL119", "--format", "json")
    assert [f["tensor"] for f in json.loads(done.stdout)["findings"]] == [".audit/000007.journal"]
