"""Real processes on a real disk: killed at any instant, two at once, a lock whose holder died."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repair.apply import Done, apply, hot, recover, undo
from repair.ledger import locked
from repair.osfs import REAL
from repair.patch import Patch, Plan, plan_for
from repair.refusals import BusyError
from tests.repair.plans import CONFIG_TEXT, MADE, A, B, Case

CASE = Case({A: [(3, 60_000)], B: [(7 * i, 2) for i in range(300)]}, {A: 70_000, B: 4000}, [CONFIG_TEXT, MADE])
PROJECT = Path(__file__).parents[2]
WORK = """
import sys
from pathlib import Path
sys.path.insert(0, {project!r})
from repair import planfile
from repair.apply import apply, undo
root, plan = Path(sys.argv[1]), planfile.load(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
while True:
    apply(root, plan)
    print("+", end="", flush=True)
    undo(root)
    print("-", end="", flush=True)
"""


def content(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}


def started(root: Path, plan: Path) -> subprocess.Popen[bytes]:
    """A process that repairs and undoes until it is killed."""
    command = [sys.executable, "-c", WORK.format(project=str(PROJECT)), str(root), str(plan)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    return child


def kill_at_random(folder: Path, times: int, seed: int) -> int:
    """How many of the kills left a repair to be settled."""
    from repair import planfile

    rng = random.Random(seed)
    root = CASE.on_disk(folder / "model")
    planfile.save(CASE.plan(root), folder / "plan.json")
    before, after = content(root), CASE.after()
    interrupted = 0
    for number in range(times):
        child = started(root, folder / "plan.json")
        child.stdin.write(b"\n")
        child.stdin.flush()
        time.sleep(rng.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        interrupted += hot(root) is not None
        recover(root)
        assert hot(root) is None
        found = content(root)
        assert found in (before, after), f"kill {number}"
        assert all(p.stat().st_mode & 0o7777 == 0o644 for p in root.iterdir() if p.is_file())
        if found == after:
            undo(root)
        assert content(root) == before
    return interrupted


def test_killed_at_twenty_random_instants(tmp_path):
    kill_at_random(tmp_path, 20, 1)


@pytest.mark.slow
def test_killed_at_two_hundred_random_instants(tmp_path):
    assert kill_at_random(tmp_path, 200, 2) > 10


def test_two_repairs_at_once(tmp_path):
    """One works, the others are refused; nothing is half done."""
    root = CASE.on_disk(tmp_path / "model")
    plan = CASE.plan(root)
    script = """
import sys
from pathlib import Path
sys.path.insert(0, {project!r})
from repair import planfile
from repair.apply import apply
from repair.refusals import BusyError
plan = planfile.load(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
try:
    print(apply(Path(sys.argv[1]), plan).done.value)
except BusyError as error:
    print("busy", error)
"""
    from repair import planfile

    planfile.save(plan, tmp_path / "plan.json")
    command = [sys.executable, "-c", script.format(project=str(PROJECT)), str(root), str(tmp_path / "plan.json")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 3
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate()[0].split()[0] for child in children]
    assert said.count("applied") == 1
    assert set(said) <= {"applied", "unchanged", "busy"}
    assert content(root) == CASE.after()


def test_lock_names_its_holder_and_dies_with_it(tmp_path):
    root = CASE.on_disk(tmp_path / "model")
    plan = CASE.plan(root)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(REAL, root):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(read, 1)
        for work in (lambda: apply(root, plan), lambda: recover(root)):
            with pytest.raises(BusyError, match=rf"another repair is at work on model \(process {child}\)"):
                work()
        assert content(root) == CASE.files
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    assert apply(root, plan).done is Done.APPLIED


MEMORY = """
import re, sys
from pathlib import Path
sys.path.insert(0, {project!r})
from tests.repair.test_process import long_plan
from repair.apply import apply, undo
root = Path(sys.argv[1])
plan = long_plan(root)
print(apply(root, plan).patches)
undo(root)
# Not getrusage: it counts what the parent held before exec.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def long_plan(root: Path) -> Plan:
    """50 000 single bytes and 96 MB of computed ones."""
    from repair.content import Computed, Shared, Stored, digest

    name = "big.safetensors"
    reader = Shared(root / name)
    start, long = 1 << 16, 96 << 20
    old = Stored(reader, start, long)
    old = Stored(reader, start, long, digest(old))
    flip = bytes.maketrans(bytes(range(256)), bytes(byte ^ 1 for byte in range(256)))
    new = Computed(long, lambda at, length: reader.read(start + at, length).translate(flip))
    patches = [Patch(name, start, old, new, "long", "SCL201")]
    for number in range(50_000):
        at = start + long + 64 * number
        byte = reader.read(at, 1)
        patches.append(Patch(name, at, byte, byte.translate(flip), f"layer.{number}.weight_scale", "SCL101"))
    return plan_for(root, patches)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_stays_small(tmp_path):
    root = tmp_path / "model"
    root.mkdir()
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % ((112 << 20, 112 << 20))
    with (root / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (112 << 20))
    command = [sys.executable, "-c", MEMORY.format(project=str(PROJECT)), str(root)]
    patches, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(patches) == 50_001
    assert int(peak) < 250 << 10, f"{peak} kB"
