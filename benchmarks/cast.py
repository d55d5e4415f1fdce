"""What a cast to NVFP4 costs, beside copying the same folder.  Every figure is measured in this run, both sides of it.

    python benchmarks/cast.py [--work DIR] [--runs 5]

Needs about 14 GB of disk.  The checkpoint has the shapes of gpt-oss: 5 layers of 64 experts, 4.5 GB in 5 shards.
`cp -r` does not sync; a cast does, shard by shard, so the copy is measured with and without a sync behind it.  Warm:
the source lies in the page cache, as it may where memory is larger than the checkpoint; cold: it is read from the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scan import AUDIT, Cost, drop, row, timed, warm

LAYERS, EXPERTS, HIDDEN, INNER, HEADS = 5, 64, 2880, 2880, 4096
_POOL = 1 << 20  # blocks of 32 that the tensors are cut from
Entry = tuple[str, str, tuple[int, ...]]


def entries(layer: int) -> list[Entry]:
    """One layer, in the order of the safetensors writer: BF16 before U8."""
    stem = f"model.layers.{layer}"
    plain: list[Entry] = [
        (f"{stem}.mlp.experts.down_proj_bias", "BF16", (EXPERTS, HIDDEN)),
        (f"{stem}.mlp.experts.gate_up_proj_bias", "BF16", (EXPERTS, 2 * INNER)),
        (f"{stem}.mlp.router.weight", "BF16", (EXPERTS, HIDDEN)),
        (f"{stem}.self_attn.o_proj.weight", "BF16", (HIDDEN, HEADS)),
        (f"{stem}.self_attn.q_proj.weight", "BF16", (HEADS, HIDDEN)),
    ]
    codes: list[Entry] = []
    for leaf, (n, k) in {"down_proj": (HIDDEN, INNER), "gate_up_proj": (2 * INNER, HIDDEN)}.items():
        codes.append((f"{stem}.mlp.experts.{leaf}_blocks", "U8", (EXPERTS, n, k // 32, 16)))
        codes.append((f"{stem}.mlp.experts.{leaf}_scales", "U8", (EXPERTS, n, k // 32)))
    return plain + codes


def pools(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of blocks as exporters write them: bell-shaped exponents, rarely a zero block of byte 0."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (_POOL, 16), np.uint8)
    scales = np.clip(rng.normal(119, 2, _POOL), 110, 127).astype(np.uint8)
    zero = rng.integers(0, _POOL, _POOL >> 17)
    codes[zero], scales[zero] = 0, 0
    return codes.reshape(-1), scales


def write_shard(path: Path, tensors: list[Entry], seed: int) -> list[str]:
    """One safetensors file."""
    codes, scales = pools(seed)
    sizes = {name: int(np.prod(shape)) * (2 if dtype == "BF16" else 1) for name, dtype, shape in tensors}
    header, at = {}, 0
    for name, dtype, shape in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, _ in tensors:
            pool = scales if name.endswith("_scales") else codes
            for done in range(0, sizes[name], pool.size):  # blocks and scales come from the same places
                file.write(pool[: sizes[name] - done].data)
    return [name for name, _, _ in tensors]


def make(folder: Path) -> None:
    """The checkpoint, unless it is there."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for layer in range(LAYERS):
        name = f"model-{layer + 1:05}-of-{LAYERS:05}.safetensors"
        weight_map.update(dict.fromkeys(write_shard(folder / name, entries(layer), layer), name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": EXPERTS}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    os.sync()


def fresh(target: Path) -> None:
    """No output of an earlier run, nothing waiting to be written."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()


def copy(folder: Path, target: Path) -> tuple[float, float]:
    """Seconds of `cp -r`, and of `cp -r` with a sync behind it."""
    fresh(target)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(folder), str(target)], check=True)
    plain = time.perf_counter() - start
    os.sync()
    return plain, time.perf_counter() - start


def cast(folder: Path, target: Path, *options: str) -> Cost:
    """Cost of a cast into a new folder."""
    fresh(target)
    return timed([str(AUDIT), "cast", str(folder), str(target), "--format", "json", *options], 1)


def main() -> None:
    """Make the checkpoint, measure in turns, print a Markdown table of medians and of the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "audit-benchmarks")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    folder, target = options.work / "gptoss-mxfp4", options.work / "cast-out"
    make(folder)
    warm(folder)
    layouts = {"compressed-tensors": [], "modelopt": ["--activations", "one"]}
    print("| what | audit | beside | ratio | wanted |\n|---|---|---|---|---|")
    copy(folder, target)  # the disk's and the page cache's first time
    for state, prepare in (("warm", warm), ("cold", drop)):
        made: dict[str, list[Cost]] = {layout: [] for layout in layouts}
        copied: list[tuple[float, float]] = []
        for _ in range(options.runs):
            prepare(folder)
            copied.append(copy(folder, target))
            for layout, more in layouts.items():
                prepare(folder)
                made[layout].append(cast(folder, target, "--layout", layout, *more))
        fresh(target)
        for layout, costs in made.items():
            table(f"{layout}, {state}", costs, copied)
    print(f"\nload {os.getloadavg()[0]:.1f}")


def table(layout: str, costs: list[Cost], copied: list[tuple[float, float]]) -> None:
    """The rows of one layout."""
    report, seconds = json.loads(costs[-1].output), [cost.seconds for cost in costs]
    for what, of in (("median", statistics.median), ("best", min)):
        ours, plain, synced = of(seconds), of([a for a, _ in copied]), of([b for _, b in copied])
        name = f"cast to {layout}, {report['bytes'] / 1e9:.2f} GB, synced, {what}"
        row(name, f"{ours:.2f} s", f"cp -r {plain:.2f} s", f"{ours / plain:.2f}x", "≤ 1.6x")
        row("the same", f"{ours:.2f} s", f"cp -r and sync {synced:.2f} s", f"{ours / synced:.2f}x", "")
    row("its peak memory", f"{max(cost.peak_mb for cost in costs):.0f} MB", "", "", "< 400 MB")
    exact = report["summary"]
    row("its exact blocks", f"{exact['exact']:,}", f"of {exact['blocks']:,}", "", "")


if __name__ == "__main__":
    sys.exit(main())
