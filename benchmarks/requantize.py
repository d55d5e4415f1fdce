"""What a requantisation costs: the whole `audit requantize` process, beside the exporter's sweep in torch.

    python benchmarks/requantize.py [--work DIR] [--runs 3] [--layers 1] [--slice 1048576] [--skip-reference]

Three bf16 sources, weights bell-shaped: 128 experts a layer in matrices of their own over two shards, and two whose
experts lie in one fused tensor of 1.07 GB, rows first as in Qwen3 or inputs first as in Llama 4.  Our side is the
process from its start to its end: reading, both passes, writing, syncing.  The reference is the exporter's loop over
126 scales in torch (`sweep.py`) and nothing else: no file is read or written.  It is timed on a slice of such weights,
the better of two runs, and its time scaled by their number, because all of them would take it an hour; every winner on
the slice is compared.  On a busy machine the ratio of processor times says more than that of wall times.  Needs about
6 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scan import AUDIT, Cost, timed

from quant.floats import narrow_bf16

EXPERTS, HIDDEN, INNER = 128, 2048, 768
FUSED = 128, 2 * 1024, 2048  # 1.07 GB of bf16
ACROSS = 8, 4096, 2 * 8192  # the same, slabs of 134 MB
Sizes = dict[str, tuple[int, ...]]


def bell(count: int, seed: int) -> np.ndarray:
    """bf16 words of a trained layer's size."""
    return narrow_bf16(np.random.default_rng(seed).standard_normal(count, np.float32) * np.float32(0.02))


def write_shard(path: Path, sizes: Sizes, seed: int) -> None:
    """One safetensors file, a few megabytes of weights repeated from different places."""
    pool = bell(1 << 24, seed)
    header, at = {}, 0
    for name, shape in sizes.items():
        count = int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, shape in enumerate(sizes.values()):
            left, start = int(np.prod(shape)), number * 7919 * 16 % (1 << 23)
            while left:
                part = pool[start : start + left]
                file.write(part.tobytes())
                left, start = left - part.size, 0


def make(folder: Path, shards: dict[str, Sizes], model_type: str = "qwen3_moe") -> Path:
    """A checkpoint, unless it is there already."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True)
        for number, (name, sizes) in enumerate(shards.items()):
            write_shard(folder / name, sizes, number)
        index = {tensor: name for name, sizes in shards.items() for tensor in sizes}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def experts(folder: Path, layers: int) -> Path:
    """Experts in matrices of their own; gate and up of one expert may lie in two shards."""
    sizes: Sizes = {}
    for layer in range(layers):
        for expert in range(EXPERTS):
            stem = f"model.layers.{layer}.mlp.experts.{expert}"
            sizes[f"{stem}.gate_proj.weight"] = sizes[f"{stem}.up_proj.weight"] = (INNER, HIDDEN)
            sizes[f"{stem}.down_proj.weight"] = (HIDDEN, INNER)
    names = list(sizes)
    half = len(names) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    return make(folder, {shard: {name: sizes[name] for name in some} for shard, some in parts.items()})


def fused(folder: Path) -> Path:
    """All experts' gate and up projections in one tensor."""
    count, rows, columns = FUSED
    at = "model.layers.0.mlp.experts"
    sizes: Sizes = {f"{at}.gate_up_proj": (count, rows, columns), f"{at}.down_proj": (count, columns, rows // 2)}
    return make(folder, {"model-00001-of-00001.safetensors": sizes})


def across(folder: Path) -> Path:
    """The same with the inputs first, and few large experts."""
    count, columns, rows = ACROSS
    at = "model.layers.0.feed_forward.experts"
    sizes: Sizes = {f"{at}.gate_up_proj": (count, columns, rows), f"{at}.down_proj": (count, rows // 2, columns)}
    return make(folder, {"model-00001-of-00001.safetensors": sizes}, "llama4_text")


def requantize(source: Path, target: Path, runs: int, *options: str) -> tuple[Cost, dict]:  # type: ignore[type-arg]
    """Whole processes, each into a new folder."""
    words = [
        str(AUDIT),
        "requantize",
        str(source),
        str(target),
        "--recipe",
        "nvfp4_mlp_only_mse-fp8_cast_kv",
        "-f",
        "json",
    ]
    cost = timed([*words, *options], runs, lambda: shutil.rmtree(target, ignore_errors=True))
    return cost, json.loads(cost.output)


def reference(count: int) -> None:
    """The exporter's loop on one weight, in this process, which is a child of its own: torch's memory stays there."""
    from sweep import torch_reference

    from quant.sweep import sweep

    w = bell(count, 5).reshape(-1, HIDDEN)
    swept = sweep(w)
    best = [1e9, 1e9]
    for _ in range(2):
        begun = time.process_time()
        codes, seconds = torch_reference(w, swept.global_amax)
        best = [min(best[0], seconds), min(best[1], time.process_time() - begun)]
        differ = int((codes.reshape(swept.codes.shape) != swept.codes).sum())
    print(json.dumps([*best, differ]))


def compared(count: int, weights: int, cost: Cost, processor: float) -> None:
    """Time it in a child, and print both ratios."""
    words = [sys.executable, __file__, "--reference", str(count)]
    found = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    wall, cpu, differ = json.loads(found.stdout)
    scale = weights / count
    print(f"  exporter's loop in torch: {wall:.2f} s ({cpu:.2f} s of processor time) for {count:,} weights, {differ}")
    print(
        f"  winners differ; scaled to all of them {wall * scale:.0f} s ({cpu * scale:.0f} s):"
        f" {wall * scale / cost.seconds:.0f} times as long, {cpu * scale / processor:.0f} times the processor time",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "audit-requantize")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--slice", type=int, default=1 << 20)
    parser.add_argument("--skip-reference", action="store_true")
    parser.add_argument("--reference", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        reference(options.reference)
        return
    if options.make:
        (
            experts(options.work / "experts", options.layers),
            fused(options.work / "fused"),
            across(options.work / "across"),
        )
        return
    again = [sys.executable, __file__, "--work", str(options.work), "--layers", str(options.layers), "--make"]
    subprocess.run(again, check=True)  # a child counts its parent's memory as its own: this process stays small
    sources = {"experts apart": "experts", "one fused tensor": "fused", "inputs first": "across"}
    target = options.work / "new"
    for label, name in sources.items():
        for method, layout in (("mse", "modelopt"), ("mse", "compressed-tensors"), ("amax", "modelopt")):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            cost, told = requantize(options.work / name, target, options.runs, "--method", method, "--layout", layout)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / options.runs
            total = told["total"]
            print(
                f"{label}, {method}, {layout}: {total['bytes_in'] / 1e9:.2f} GB in {cost.seconds:.2f} s"
                f" ({processor:.2f} s of processor time), {total['bytes_in'] / cost.seconds / 1e6:.0f} MB/s,"
                f" peak {cost.peak_mb:.0f} MB, {total['modules']} modules, SQNR {total['sqnr_db']:.2f} dB,"
                f" load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            shutil.rmtree(target)
            if (method, layout) == ("mse", "modelopt") and not options.skip_reference:
                compared(options.slice, total["bytes_in"] // 2, cost, processor)


if __name__ == "__main__":
    main()
