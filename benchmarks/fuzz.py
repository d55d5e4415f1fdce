"""Throw broken checkpoints at the scan: `python -m benchmarks.fuzz --seconds 60`.

Any bytes must end in findings or in one CheckpointError: no other exception, no internal error of a rule, no
file opened outside the folder, 5 seconds of CPU a case at most (30 for files of 100 MB), under 1 GiB of memory.
Prints each failure with the seed that repeats it, then one line of figures; exit code 1 when anything failed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditor.audit import Depth
from auditor.engine import scan
from benchmarks import hostile, oversized
from benchmarks.assemble import assemble
from quant.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 5.0
BIG_SECONDS = 30.0
BIG_MEMORY = 1 << 30
INTERESTING = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"{",
    b"}",
    b"[",
    b'"',
    b",",
    b":",
    b"-",
    b"0",
    b"9" * 20,
    b"\\u0000",
    b"\xed\xa0\x80",
]


class Watch:
    """Remembers every file opened while it is on; audit hooks cannot be taken away, so there is one."""

    def __init__(self) -> None:
        self.opened: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if self.opened is not None and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            self.opened.append(os.fsdecode(args[0]))

    @contextmanager
    def on(self) -> Iterator[list[str]]:
        """Collect the names of opened files."""
        self.opened = found = []
        try:
            yield found
        finally:
            self.opened = None


def outside(opened: list[str], root: Path) -> list[str]:
    """Opened files that are not in the folder by name; the interpreter's own modules do not count."""
    here = str(root) + os.sep
    return [name for name in opened if not ((name.startswith(here) and os.sep not in name[len(here) :]) or _own(name))]


def _own(name: str) -> bool:
    return name.startswith((sys.prefix, sys.base_prefix, str(ROOT)))


def judge(root: Path, depth: Depth, watch: Watch) -> str:
    """What is wrong with the way a scan ended; "" when it ended as it must."""
    began = time.process_time()  # of this process: a busy machine is no fault of the scan
    try:
        with watch.on() as opened:
            audit = scan(root, depth=depth, jobs=1)
        complaint = f"rule raised: {audit.errors[0]}" if audit.errors else ""
    except CheckpointError:
        complaint = ""
    except Exception:
        complaint = traceback.format_exc()
    took = time.process_time() - began
    if not complaint and took > SECONDS:
        complaint = f"took {took:.1f} s"
    if not complaint and (strangers := outside(opened, root)):
        complaint = f"opened {strangers[:3]}"
    return complaint


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes of ``raw`` changed, put in, taken out, repeated or cut off."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        near_front = rng.random() < 0.3
        at = rng.randrange(min(len(data), 16) if near_front and data else len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64))
        piece = rng.choice((rng.randbytes(length), rng.choice(INTERESTING), bytes(data[at : at + length])))
        how = rng.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + len(piece)] = piece
        elif how == 2:
            data[at:at] = piece
        elif how == 3:
            del data[at : at + length]
        elif how == 4 and rng.random() < 0.2:
            del data[at:]
        else:
            _replace_number(data, rng)
    return bytes(data)


def _replace_number(data: bytearray, rng: random.Random) -> None:
    """Another number, or another word, in the place of one that is there: keeps JSON valid most of the time."""
    digits = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    words = [w for w in (b"U8", b"F8_E4M3", b"F32", b"NVFP4", b"modelopt", b"weight_scale", b"weight_map") if w in data]
    if words and rng.random() < 0.4:
        word = rng.choice(words)
        at = data.index(word)
        data[at : at + len(word)] = rng.choice(
            (b"F4", b"BF16", b"I8", b"F8_E8M0", b"F8_E5M2", b"F64", b"weight", b"MXFP8")
        )
    elif digits:
        at = rng.choice(digits)
        data[at : at + 1] = rng.choice((b"0", b"1", b"7", b"16", b"31", b"256", b"4294967296", b"18446744073709551615"))


def small_cases(watch: Watch) -> Iterator[tuple[str, str, float]]:
    """(name, complaint, seconds) of every small hostile checkpoint at every depth."""
    for name, make in hostile.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            for depth in Depth:
                began = time.perf_counter()
                complaint = judge(Path(folder), depth, watch)
                yield f"{name} at {depth.label}", complaint, time.perf_counter() - began


def random_cases(seconds: float, seed: int, watch: Watch) -> Iterator[tuple[str, str, float]]:
    """(name, complaint, seconds) of mutated and assembled checkpoints at every depth, until the time is up."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make_random(root, rng)
            for depth in Depth:
                began = time.perf_counter()
                complaint = judge(root, depth, watch)
                yield f"seed {seed} at {depth.label}", complaint, time.perf_counter() - began
        seed += 1


def make_random(root: Path, rng: random.Random) -> None:
    """A healthy checkpoint mutated, or one assembled of random layers, mutated or not."""
    if rng.random() < 0.5:
        hostile.healthy(root)
        mutated = rng.choice((1, 1, 2))
    else:
        assemble(root, rng)
        mutated = rng.choice((0, 0, 1))
    for path in rng.sample(sorted(root.iterdir()), mutated):
        path.write_bytes(mutate(path.read_bytes(), rng))


def big_cases() -> Iterator[tuple[str, str, float, int]]:
    """(name, complaint, seconds, bytes of memory) of files of 100 MB, each scanned in a process of its own."""
    for name, make in oversized.CASES.items():
        folder = tempfile.mkdtemp()
        try:
            make(Path(folder))
            for depth in (Depth.HEADERS, Depth.FULL):
                yield scan_apart(f"{name} at {depth.label}", Path(folder), depth)
        finally:
            shutil.rmtree(folder)


def scan_apart(name: str, path: Path, depth: Depth) -> tuple[str, str, float, int]:
    """(name, complaint, seconds, bytes of memory) of a scan in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--scan", str(path), depth.label]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * BIG_SECONDS, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return name, f"still running after {4 * BIG_SECONDS:.0f} s", 4 * BIG_SECONDS, 0
    printed = done.stdout.split()
    memory, took = (int(printed[0]), float(printed[1])) if len(printed) == 2 else (0, 0.0)
    complaint = done.stderr.strip()
    if not complaint and took > BIG_SECONDS:
        complaint = f"took {took:.1f} s"
    if not complaint and memory > BIG_MEMORY:
        complaint = f"took {memory >> 20} MiB"
    return name, complaint or ("" if done.returncode == 0 else f"exit code {done.returncode}"), took, memory


def scan_and_measure(path: Path, depth: Depth) -> int:
    """Scan, print the peak of this process's memory in bytes and its seconds; 1 when a rule raised."""
    try:
        errors = scan(path, depth=depth).errors
    except CheckpointError:
        errors = ()
    for error in errors:
        print(error, file=sys.stderr)
    # Not ru_maxrss: that one a process inherits from whoever started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024, time.process_time())
    return 1 if errors else 0


def main() -> int:
    """Run everything; the exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60, help="of random mutation")
    options.add_argument("--seed", type=int, default=0, help="of the first random mutation")
    options.add_argument("--no-big", action="store_true", help="leave out the files of 100 MB")
    options.add_argument("--scan", nargs=2, metavar=("PATH", "DEPTH"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.scan:
        return scan_and_measure(Path(chosen.scan[0]), Depth[chosen.scan[1].upper()])
    watch, failed, count, worst, memory = Watch(), 0, 0, (0.0, ""), (0, "")
    big = () if chosen.no_big else big_cases()
    for name, complaint, took, *peak in (*small_cases(watch), *random_cases(chosen.seconds, chosen.seed, watch), *big):
        count += 1
        worst, memory = max(worst, (took, name)), max(memory, (peak[0] if peak else 0, name))
        if complaint:
            failed += 1
            print(f"FAILED {name}: {complaint}", flush=True)
    print(f"{count} cases, {failed} failed, slowest {worst[0]:.2f} s ({worst[1]}), {memory[0] >> 20} MiB ({memory[1]})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
