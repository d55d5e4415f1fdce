"""Real processes: killed at any instant, or two at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from auditor.checkpoint import open_checkpoint
from quant.errors import CheckpointError, RepairError
from repair.make.folder import make
from repair.make.notes import locked
from repair.osfs import REAL
from tests.repair.make import longjob

REPO = Path(__file__).parents[3]


def start(source: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.repair.make.longjob", str(source), str(target)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_any_instant(tmp_path, rounds):
    source = longjob.write_source(tmp_path / "src")
    began = time.monotonic()
    make(longjob.job(source), tmp_path / "whole")
    took = time.monotonic() - began
    whole, target, work = content(tmp_path / "whole"), tmp_path / "new", tmp_path / "new.incomplete"
    rng, kills = random.Random(rounds), 0
    while kills < rounds:
        running = start(source, target)
        while not work.exists() and running.poll() is None:
            time.sleep(0.002)  # the interpreter is starting
        time.sleep(rng.random() * took)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        kills += 1
        if target.exists():
            assert content(target) == whole
            target.rename(tmp_path / f"done{kills}")
        elif work.exists() and (work / "UNFINISHED.json").exists():
            with pytest.raises(CheckpointError, match="is unfinished"):
                open_checkpoint(work)
            assert not (work / "config.json").exists() or whole.items() <= content(work).items()
    left = start(source, target)
    out, err = left.communicate()
    assert (out, err) == ("12\n", "")
    assert content(target) == whole
    assert not work.exists()
    assert not (tmp_path / "new.incomplete.lock").exists()


def test_two_at_once(tmp_path):
    source = longjob.write_source(tmp_path / "src", shards=1, nbytes=256)
    with locked(REAL, tmp_path / "new.incomplete"):
        out, err = start(source, tmp_path / "new").communicate()
        assert err == f"refused: {tmp_path}/new.incomplete: another process is at work on it\n"
        assert out == ""
        assert not (tmp_path / "new.incomplete").exists()
    assert start(source, tmp_path / "new").communicate() == ("3\n", "")


def test_many_at_once(tmp_path):
    """Each is refused or makes it; it is made once, and whole."""
    source = longjob.write_source(tmp_path / "src", shards=2)
    make(longjob.job(source), tmp_path / "whole")
    ends = [running.communicate() for running in [start(source, tmp_path / "new") for _ in range(4)]]
    assert [out for out, _ in ends if out] == ["6\n"]
    assert all("at work on it" in err or "is there already" in err for out, err in ends if not out), ends
    assert content(tmp_path / "new") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "src", "whole"]


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_was_taken_away(tmp_path, again):
    """Who waited for it holds a file without a name, or the name is another file's by now: that is no lock."""

    class Late:
        def __getattr__(self, name: str) -> object:
            return getattr(REAL, name)

        def open_lock(self, path: Path) -> int:
            fd = REAL.open_lock(path)
            REAL.unlink(path)
            if again:
                path.write_bytes(b"")
            return fd

    with pytest.raises(RepairError, match="another process"), locked(Late(), tmp_path / "x"):  # type: ignore[arg-type]
        pytest.fail("was let in")
