"""What a scan costs, beside what people do today.  Every figure is measured in this run, both sides of it.

    python benchmarks/scan.py [--work DIR] [--runs 5] [--big GB]

Needs about 6 GB of disk for the default sizes; torch and safetensors for the loop it is compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import big

LOOP = """
import sys, glob, torch
from safetensors.torch import load_file
bad = 0
for shard in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    for name, tensor in load_file(shard).items():
        if name.endswith("weight_scale"):
            bad += int(torch.isnan(tensor.float()).sum())
print(bad)
"""


AUDIT = Path(sys.executable).with_name("audit")


class Cost(NamedTuple):
    seconds: float
    peak_mb: float
    output: str


def timed(command: list[str], runs: int, before: object = None) -> Cost:
    """Median wall time and largest peak memory of a child process over ``runs``."""
    seconds, peaks, output = [], [], ""
    for _ in range(runs):
        if callable(before):
            before()
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = child.stdout.read() if child.stdout else "", child.stderr.read() if child.stderr else ""
        _, status, usage = os.wait4(child.pid, 0)
        seconds.append(time.perf_counter() - start)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in (0, 1):
            raise SystemExit(f"{' '.join(command[:4])} ended with {child.returncode}: {err[-2000:]}")
        peaks.append(usage.ru_maxrss / 1024)
        output = out
    return Cost(statistics.median(seconds), max(peaks), output)


def audit(folder: Path, *options: str) -> list[str]:
    """The command line of a scan that prints JSON."""
    return [str(AUDIT), "scan", str(folder), "--format", "json", *options]


def drop(folder: Path) -> None:
    """Push the folder's files out of the page cache."""
    for path in sorted(folder.glob("*.safetensors")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(folder: Path) -> None:
    """Pull the folder's files into the page cache."""
    subprocess.run(cat(folder), check=True, stdout=subprocess.DEVNULL)


def cat(folder: Path) -> list[str]:
    """A shell command that reads every shard to the end, through a pipe's worth of buffer."""
    return ["sh", "-c", f"cat {folder}/*.safetensors > /dev/null"]


def row(what: str, ours: str, other: str, ratio: str, wanted: str) -> None:
    """A line of the table."""
    print(f"| {what} | {ours} | {other} | {ratio} | {wanted} |", flush=True)


def default_depth(folder: Path, runs: int) -> None:
    """One gigabyte, default depth, warm: against the torch loop and against an empty interpreter."""
    warm(folder)
    scan = timed(audit(folder), runs)
    loop = timed([sys.executable, "-c", LOOP, str(folder)], max(2, runs // 2))
    bare = timed([sys.executable, "-c", "import numpy, typer"], runs)
    row("default depth, warm", f"{scan.seconds:.3f} s", f"torch loop {loop.seconds:.2f} s",
        f"{loop.seconds / scan.seconds:.1f}x faster", "≥ 5x")  # fmt: skip
    row("beyond an empty process", f"{scan.seconds:.3f} s", f"import numpy, typer {bare.seconds:.3f} s",
        f"{scan.seconds - bare.seconds:+.3f} s", "≤ 0.2 s")  # fmt: skip
    report = json.loads(scan.output)
    wanted = scales_and_headers(folder)
    row("bytes read, default depth", f"{report['bytes_read']:,}", f"headers, scalars, scales {wanted:,}",
        f"{report['bytes_read'] / wanted:.4f}", "≤ 1.02")  # fmt: skip
    row("peak memory, default depth", f"{scan.peak_mb:.0f} MB", f"torch loop {loop.peak_mb:.0f} MB",
        f"{loop.peak_mb / scan.peak_mb:.1f}x less", "< 120 MB")  # fmt: skip


def scales_and_headers(folder: Path) -> int:
    """Bytes of headers, scalars and block scales, counted from the files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        total += 8 + length
        total += sum(e - b for t in header.values() if t["dtype"] != "U8" for b, e in [t["data_offsets"]])
    return total


def full_depth(folder: Path, runs: int) -> None:
    """Every byte, warm and cold, beside cat."""
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    warm(folder)
    ours, theirs = timed(audit(folder, "--depth", "full"), runs), timed(cat(folder), runs)
    row(f"full depth, {held / 1e9:.1f} GB, warm", f"{ours.seconds:.2f} s", f"cat {theirs.seconds:.2f} s",
        f"{ours.seconds / theirs.seconds:.2f}x", "≤ 6x")  # fmt: skip
    report = json.loads(ours.output)
    row("bytes read, full depth", f"{report['bytes_read']:,}", f"held {held:,}",
        f"{report['bytes_read'] / held:.4f}", "each once")  # fmt: skip
    row("peak memory, full depth", f"{ours.peak_mb:.0f} MB", "", "", "< 120 MB")
    pairs = []
    for _ in range(max(2, runs // 2)):
        cold = timed(audit(folder, "--depth", "full"), 1, lambda: drop(folder))
        plain = timed(cat(folder), 1, lambda: drop(folder))
        pairs.append((cold.seconds, plain.seconds))
    cold_s, plain_s = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    row("full depth, cold", f"{cold_s:.2f} s", f"cat {plain_s:.2f} s", f"{cold_s / plain_s:.2f}x", "≤ 1.2x")


def headers_only(folder: Path, runs: int) -> None:
    """A hundred thousand tensors in 64 shards, no data."""
    cost = timed(audit(folder, "--depth", "headers"), runs)
    bare = timed([sys.executable, "-c", "import numpy, typer"], runs)
    row("100 000 tensors, 64 shards, headers", f"{cost.seconds:.2f} s", f"import numpy, typer {bare.seconds:.3f} s",
        f"{cost.peak_mb:.0f} MB", "< 3 s")  # fmt: skip


def main() -> None:
    """Make the checkpoints, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "audit-benchmarks")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--big", type=float, default=4.2, help="gigabytes of the full-depth checkpoint")
    options = parser.parse_args()
    small, large, many = (options.work / name for name in ("nvfp4-1gb", f"nvfp4-{options.big}gb", "headers-100k"))
    print(f"{big.make(small, 1.0)} tensors in 1 GB", file=sys.stderr)
    big.make(large, options.big)
    big.make_headers(many)
    print("| what | audit | beside | ratio | wanted |\n|---|---|---|---|---|")
    default_depth(small, options.runs)
    full_depth(large, options.runs)
    headers_only(many, options.runs)


if __name__ == "__main__":
    main()
