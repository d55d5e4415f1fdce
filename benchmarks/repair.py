"""What a repair costs, beside loading and saving with torch.  Every figure is measured in this run, both sides of it.

    python benchmarks/repair.py [--work DIR] [--runs 3]

Needs about 5 GB of disk; torch and safetensors for what it is compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import big
import numpy as np
from scan import Cost, drop, row, timed, warm

EXPERTS, HIDDEN, INNER = 128, 2048, 768
PAUSE = 1.0  # seconds between runs
EVERYTHING = "torch with what a repair does: errors, undo, sync, reading back"
TORCH = """
import sys, glob, os, torch
from safetensors.torch import load_file, save_file
os.mkdir(sys.argv[2])
def last(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
def save(tensors, shard):
    path = os.path.join(sys.argv[2], os.path.basename(shard))
    save_file(tensors, path)
    if sys.argv[3] == "durable":
        last(path)
        last(sys.argv[2])
"""
LOAD_SAVE = """
for shard in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    tensors = load_file(shard)
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            codes = tensor.view(torch.uint8)
            codes[(codes & 0x7F) == 0x7F] = 0x7E
    save(tensors, shard)
"""
HARMONISE = """
for shard in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    tensors = load_file(shard)
    for name in [n for n in tensors if n.endswith("gate_proj.weight_scale_2")]:
        pair = [name, name.replace("gate_proj", "up_proj")]
        top = torch.maximum(tensors[pair[0]], tensors[pair[1]])
        for one in pair:
            scales = one.removesuffix("_2")
            wide = (tensors[scales].float() * (tensors[one] / top)).clamp(max=448.0)
            tensors[scales] = wide.to(torch.float8_e4m3fn)
            tensors[one] = top.clone()
    save(tensors, shard)
"""

# What a repair does besides: measured errors, the old bytes kept to take it back, everything on the disk, read back.
SAME = """
VALUES = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
def weights(codes, scales, scale):
    pairs = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()
    return VALUES[pairs].view(*scales.shape, 16) * (scales.float() * scale).unsqueeze(-1)
errors = {}
for shard in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    tensors = load_file(shard)
    old = {}
    for name in [n for n in tensors if n.endswith("gate_proj.weight_scale_2")]:
        pair = [name, name.replace("gate_proj", "up_proj")]
        top = torch.maximum(tensors[pair[0]], tensors[pair[1]])
        for one in pair:
            if torch.equal(tensors[one], top):
                continue
            scales, codes = one.removesuffix("_2"), tensors[one.removesuffix("_scale_2")]
            old[scales], old[one] = tensors[scales], tensors[one]
            wide = (tensors[scales].float() * (tensors[one] / top)).clamp(max=448.0)
            tensors[scales] = wide.to(torch.float8_e4m3fn)
            tensors[one] = top.clone()
            before, after = weights(codes, old[scales], old[one]), weights(codes, tensors[scales], top)
            errors[one] = float((after - before).norm() / before.norm())
    save_file(old, os.path.join(sys.argv[2], os.path.basename(shard) + ".undo"))
    last(os.path.join(sys.argv[2], os.path.basename(shard) + ".undo"))
    save(tensors, shard)
    again = load_file(os.path.join(sys.argv[2], os.path.basename(shard)))
    assert all(torch.equal(again[name].view(torch.uint8), tensors[name].view(torch.uint8)) for name in old)
"""


def make_experts(folder: Path, layers: int = 3, hidden: int = HIDDEN, inner: int = INNER, dead: bool = False) -> None:
    """A checkpoint of 128 experts a layer, about 1 GB, in which no gate agrees with its up projection.

    ``dead``: nor were most of its activations calibrated.
    """
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        name = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        sized: list[big.Entry] = []
        for expert in range(EXPERTS):
            stem = f"model.layers.{layer}.mlp.experts.{expert}"
            for leaf, (n, k) in {
                "down_proj": (hidden, inner),
                "gate_proj": (inner, hidden),
                "up_proj": (inner, hidden),
            }.items():
                sized += [(f"{stem}.{leaf}.input_scale", "F32", (), 4), (f"{stem}.{leaf}.weight_scale_2", "F32", (), 4)]
                sized += [(f"{stem}.{leaf}.weight_scale", "F8_E4M3", (n, k // 16), n * k // 16)]
                sized += [(f"{stem}.{leaf}.weight", "U8", (n, k // 2), n * k // 2)]
        sized.sort(key=lambda entry: ({"F32": 0, "F8_E4M3": 1, "U8": 2}[entry[1]], entry[0]))
        weight_map.update(dict.fromkeys(big.write_shard(folder / name, sized, layer), name))
        spread(folder / name, layer, dead)
    big.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    big.write_config(folder)
    (folder / "complete").write_text("")


def header(path: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Offset of the data, and the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


def spread(path: Path, seed: int, dead: bool) -> None:
    """Give every gate projection another global scale; ``dead``: and most projections an input scale of 0."""
    start, tensors = header(path)
    rng = np.random.default_rng(seed)
    with path.open("r+b") as file:
        for name, entry in tensors.items():
            if name.endswith("gate_proj.weight_scale_2"):
                file.seek(start + entry["data_offsets"][0])
                file.write(np.float32(3.5e-5 * rng.uniform(0.1, 0.95)).tobytes())
            if dead and name.endswith("input_scale") and rng.random() < 0.58:
                file.seek(start + entry["data_offsets"][0])
                file.write(bytes(4))


def poke(folder: Path) -> list[tuple[Path, int, bytes]]:
    """Three NaN bytes in the scales of three shards, over codes that are zeroed to make the repair exact."""
    done = []
    for path in sorted(folder.glob("*.safetensors"))[:3]:
        start, tensors = header(path)
        name = next(n for n in tensors if n.endswith("down_proj.weight_scale"))
        places = [(tensors[name]["data_offsets"][0], b"\x7f"), (tensors[name[:-6]]["data_offsets"][0], bytes(8))]
        with path.open("r+b") as file:
            for at, new in places:
                file.seek(start + at)
                done.append((path, start + at, file.read(len(new))))
                file.seek(start + at)
                file.write(new)
    return done


def restore(places: list[tuple[Path, int, bytes]]) -> None:
    """Put back what `poke` wrote over."""
    for path, at, old in places:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(old)


def audit(*words: str) -> list[str]:
    """A command line."""
    return [str(Path(sys.executable).with_name("audit")), *words]


def repairs(folder: Path, runs: int, risk: str) -> tuple[Cost, int]:
    """Median cost of a repair that is taken back after each run, and the size of its journal in bytes."""
    seconds, peaks, output, journal = [], [], "", 0
    for _ in range(runs):
        cost = timed(audit("repair", str(folder), "--risk", risk, "--write", "--format", "json"), 1)
        seconds.append(cost.seconds)
        peaks.append(cost.peak_mb)
        output = cost.output
        journal = sum(path.stat().st_size for path in (folder / ".audit").iterdir())
        timed(audit("undo", str(folder)), 1)
        shutil.rmtree(folder / ".audit", ignore_errors=True)
    return Cost(statistics.median(seconds), max(peaks), output), journal


def torch_cost(program: str, folder: Path, work: Path, runs: int, durable: bool) -> Cost:
    """Median cost of a plain program that loads every shard and saves it to a new folder; ``durable``: synced."""
    out = work / "out"
    words = [sys.executable, "-c", TORCH + program, str(folder), str(out), "durable" if durable else "as written"]
    cost = timed(words, runs, lambda: shutil.rmtree(out, ignore_errors=True))
    shutil.rmtree(out, ignore_errors=True)
    return cost


def three_bytes(folder: Path, work: Path, runs: int) -> None:
    """Three bytes in a gigabyte: against the scan, and against load and save."""
    places = poke(folder)
    try:
        settle(folder, warm)
        scan = timed(audit("scan", str(folder), "--format", "json"), runs)
        repairs(folder, 1, "exact")  # not counted
        repair, journal = repairs(folder, runs, "exact")
        plain, durable = (torch_cost(LOAD_SAVE, folder, work, runs, durable) for durable in (False, True))
    finally:
        restore(places)
    report = json.loads(repair.output)
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    row("three bytes in 1 GB", f"{repair.seconds:.3f} s", f"scan {scan.seconds:.3f} s",
        f"{repair.seconds - scan.seconds:+.3f} s", "≤ +0.3 s")  # fmt: skip
    for what, torch in (("load and save", plain), ("load, save and sync", durable)):
        row("the same, beside torch", f"{repair.seconds:.3f} s", f"{what} {torch.seconds:.2f} s",
            f"{torch.seconds / repair.seconds:.1f}x faster", "")  # fmt: skip
    row("bytes written", f"{report['bytes'] + journal:,}", f"load and save {held:,}",
        f"{held / (report['bytes'] + journal):,.0f}x less", "≥ 50x")  # fmt: skip


def harmonise(folder: Path, work: Path, runs: int, cold: bool) -> None:
    """Every gate/up pair of 128 experts: against plain torch, all sides in turn.  ``cold``: read from the disk."""
    ready = drop if cold else warm
    kinds = {"torch": (HARMONISE, False), "torch, synced": (HARMONISE, True), EVERYTHING: (SAME, True)}
    ours: list[Cost] = []
    theirs: dict[str, list[Cost]] = {what: [] for what in kinds}
    warm(folder)
    repairs(folder, 1, "bounded")  # not counted
    for _ in range(runs):
        settle(folder, ready)
        ours.append(repairs(folder, 1, "bounded")[0])
        for what, (program, durable) in kinds.items():
            settle(folder, ready)
            theirs[what].append(torch_cost(program, folder, work, 1, durable))
    seconds, peak = statistics.median(cost.seconds for cost in ours), max(cost.peak_mb for cost in ours)
    pairs = sum(r["code"] == "GLB102" for r in json.loads(ours[0].output)["repairs"])
    where = ", read from the disk" if cold else ""
    for what, costs in theirs.items():
        other = statistics.median(cost.seconds for cost in costs)
        row(f"{pairs} gate/up pairs, 1 GB{where}", f"{seconds:.2f} s", f"{what} {other:.2f} s",
            f"{other / seconds:.1f}x faster", "≥ 5x")  # fmt: skip
    if not cold:
        other = max(cost.peak_mb for cost in theirs["torch"])
        row("peak memory", f"{peak:.0f} MB", f"torch {other:.0f} MB", f"{other / peak:.1f}x less", "< 300 MB")


def many(folder: Path) -> None:
    """A dry run over 220 000 tensors with tens of thousands of findings."""
    cost = timed(audit("repair", str(folder), "--risk", "guess", "--format", "json"), 1)
    report = json.loads(cost.output)
    told = f"{report['patches']:,} patches, {len(report['repairs']):,} repairs"
    row("a dry run over 219,648 tensors", f"{cost.seconds:.1f} s", told, f"{cost.peak_mb:.0f} MB", "< 500 MB")


def settle(folder: Path, ready: Callable[[Path], None]) -> None:
    """Let the disk, and what lies behind it, rest; have the folder's files where a run expects them."""
    os.sync()
    time.sleep(PAUSE)
    ready(folder)


def prepare(work: Path) -> tuple[Path, Path, Path]:
    """The checkpoints, made in another process: a child's peak memory begins with its parent's."""
    small, experts, wide = work / "nvfp4-1gb", work / "experts-1gb", work / "experts-wide"
    if not all((folder / "complete").exists() for folder in (small, experts, wide)):
        code = "import sys, repair; from pathlib import Path; repair.make_all(*map(Path, sys.argv[1:]))"
        subprocess.run([sys.executable, "-c", code, small, experts, wide], check=True, cwd=Path(__file__).parent)
    return small, experts, wide


def make_all(small: Path, experts: Path, wide: Path) -> None:
    """Make what is not there yet."""
    big.make(small, 1.0)
    make_experts(experts)
    make_experts(wide, layers=143, hidden=256, inner=128, dead=True)


def keep_bytecode(work: Path) -> None:
    """Both sides start from compiled modules, as after an installation."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(work / "bytecode")
    subprocess.run([sys.executable, "-c", "import torch, safetensors.torch"], check=True)


def main() -> None:
    """Make the checkpoints, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "audit-benchmarks")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    small, experts, wide = prepare(options.work)
    keep_bytecode(options.work)
    print("| what | audit | beside | ratio | wanted |\n|---|---|---|---|---|")
    three_bytes(small, options.work, options.runs)
    harmonise(experts, options.work, options.runs, cold=False)
    harmonise(experts, options.work, options.runs, cold=True)
    many(wide)


if __name__ == "__main__":
    main()
