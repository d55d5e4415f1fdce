"""`audit compare` end to end against the same comparison in torch, on one core in one run.

    python -m benchmarks.compare [--megabytes 256] [--repeat 3] [--big 2] [--folder /dev/shm]

Checkpoints are written to ``--folder``, read once to warm the cache, and compared by one thread: headers, pairing,
reading, dequantising, sums, exact blocks and the worst blocks.  torch does what a script of a few lines does: load
both tensors, dequantise to float32, mean squared error, SQNR, cosine, largest error and exact blocks, one thread.

Two rates over processor time (of the best of the repeats): ``source``, two bytes for each weight, which is what the
weights take unquantised, whatever the two sides are; ``read``, the bytes of both sides' files.  Memory is the peak of a
process of its own, whose first figure is what the imports alone take, at the size of the rates and for ``--big``
gigabytes of bf16.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from quant import fp8, mx, mx_to_nv, nvfp4
from quant.floats import narrow_bf16
from quant.scheme import FP8_BLOCK, MXFP4, NVFP4_DIVIDE
from repair.distance import compare_checkpoints
from tests.raw import Raw, raw, shard_bytes

Tensors = dict[str, Raw]
SIDE = 4096
NAME = "model.layers.{}.mlp.down_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def folder(root: Path, tensors: Tensors) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(sorted(tensors)):
        (root / f"model-{at:05}.safetensors").write_bytes(shard_bytes({name: tensors[name]}))
    (root / "config.json").write_text('{"model_type": "gpt_oss"}')
    return str(root)


def u8(array: np.ndarray, dtype: str = "U8") -> Raw:
    return Raw(dtype, array.shape, np.ascontiguousarray(array).tobytes())


def dense(count: int, kind: str) -> Tensors:
    """``count`` square weights in a layout."""
    made: Tensors = {}
    for at in range(count):
        w = np.random.default_rng(at).standard_normal((SIDE, SIDE), np.float32)
        words, name = narrow_bf16(w), NAME.format(at)
        if kind == "bf16":
            made[f"{name}.weight"] = Raw("BF16", w.shape, words.tobytes())
        elif kind == "nvfp4":
            q = nvfp4.quantise(words)
            made |= {
                f"{name}.weight": u8(q.stored),
                f"{name}.weight_scale": u8(q.scales, "F8_E4M3"),
                f"{name}.weight_scale_2": raw("F32", np.asarray(q.global_scale)),
            }
        elif kind == "ct-nvfp4":
            q = nvfp4.quantise(words, scheme=NVFP4_DIVIDE)
            made |= {
                f"{name}.weight_packed": u8(q.stored),
                f"{name}.weight_scale": u8(q.scales, "F8_E4M3"),
                f"{name}.weight_global_scale": raw("F32", np.asarray(q.global_scale).reshape(1)),
            }
        elif kind == "mxfp4":
            q = mx.quantise(words, MXFP4)
            made |= {f"{name}.weight": u8(q.stored), f"{name}.weight_scale": u8(q.scales)}
        else:
            q = fp8.quantise(words, FP8_BLOCK)
            made |= {f"{name}.weight": u8(q.stored, "F8_E4M3"), f"{name}.weight_scale_inv": raw("F32", q.scales)}
    return made


def experts(count: int, kind: str) -> Tensors:
    """A fused tensor of gpt-oss's shape: MXFP4, its cast in modelopt's 3-D layout, or transposed bf16."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((count, 5760, 2880), np.float32) * np.float32(0.02)
    if kind == "bf16":
        return {EXPERTS: Raw("BF16", (count, 2880, 5760), narrow_bf16(w).swapaxes(1, 2).tobytes())}
    q = mx.quantise(w, MXFP4)
    if kind == "mxfp4":
        return {f"{EXPERTS}_blocks": u8(q.stored.reshape(count, 5760, 90, 16)), f"{EXPERTS}_scales": u8(q.scales)}
    made = mx_to_nv.cast(mx_to_nv.Source(q.stored, np.asarray(q.scales))).quantised
    return {
        EXPERTS: u8(made.stored.swapaxes(1, 2)),
        f"{EXPERTS}_weight_scale": u8(np.asarray(made.scales).swapaxes(1, 2), "F8_E4M3"),
        f"{EXPERTS}_weight_scale_2": raw("F32", np.asarray(made.global_scale).reshape(())),
    }


def cpu_time(run: Callable[[], object], repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def in_torch(a: str, b: str, kind: str, count: int) -> tuple[float, float]:
    """Mean squared error and share of exact blocks of all weights, as a short script finds them."""

    def load(root: str, name: str) -> torch.Tensor:
        for file in sorted(Path(root).glob("*.safetensors")):
            with safe_open(file, "pt") as held:
                if name in held.keys():  # noqa: SIM118
                    return held.get_tensor(name)
        raise KeyError(name)

    def four(packed: torch.Tensor) -> torch.Tensor:
        return VALUES[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()]

    squared = exact = blocks = 0.0
    for at in range(count):
        name = NAME.format(at)
        w = load(a, f"{name}.weight").float()
        codes = load(b, f"{name}.weight")
        if kind == "nvfp4":
            step = load(b, f"{name}.weight_scale").float() * load(b, f"{name}.weight_scale_2")
            v = (four(codes).view(SIDE, -1, 16) * step.unsqueeze(-1)).view_as(w)
        elif kind == "mxfp4":
            step = torch.exp2(load(b, f"{name}.weight_scale").float() - 127)
            v = (four(codes).view(SIDE, -1, 32) * step.unsqueeze(-1)).view_as(w)
        else:
            step = load(b, f"{name}.weight_scale_inv").repeat_interleave(128, 0).repeat_interleave(128, 1)
            v = codes.float() * step
        d = (w - v).double()
        squared += float((d * d).sum())
        wd, vd = w.double(), v.double()
        float((wd * wd).sum()), float((vd * vd).sum()), float((wd * vd).sum()), float(d.abs().max())
        equal = (w == v).view(SIDE, -1, 16).all(-1)
        exact, blocks = exact + int(equal.sum()), blocks + equal.numel()
    return squared / (count * SIDE * SIDE), exact / blocks


def stored(*roots: str) -> int:
    return sum(file.stat().st_size for root in roots for file in Path(root).glob("*.safetensors"))


def peak(a: str, b: str, jobs: int) -> tuple[int, int]:
    """Peak memory of the imports and of a comparison, MB, each in a process of its own."""
    base = "import re, quant.cpu_distance; from repair.distance import compare_checkpoints as c"
    # Not ru_maxrss: that one a process inherits from whoever started it.
    say = "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) * 1024 // 1000000)"
    figures = []
    for work in ("", f"; c({a!r}, {b!r}, jobs={jobs})"):
        ran = subprocess.run([sys.executable, "-c", f"{base}{work}; {say}"], capture_output=True, text=True, check=True)
        figures.append(int(ran.stdout))
    return figures[0], figures[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="of the bf16 side")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--big", type=float, default=0, help="gigabytes of bf16 for a second look at memory; 0: none")
    parser.add_argument("--folder", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = max(1, options.megabytes * 1_000_000 // (2 * SIDE * SIDE))
    slabs = max(1, options.megabytes * 1_000_000 // (2 * 5760 * 2880))
    root = Path(tempfile.mkdtemp(dir=options.folder))
    print(f"{count} weights of {SIDE} x {SIDE}, {slabs} experts of 5760 x 2880, load {os.getloadavg()[0]:.1f}")
    try:
        paths = {k: folder(root / k, dense(count, k)) for k in ("bf16", "nvfp4", "ct-nvfp4", "mxfp4", "fp8")}
        paths |= {f"3d {k}": folder(root / f"3d-{k}", experts(slabs, k)) for k in ("bf16", "mxfp4", "nvfp4")}
        compare_checkpoints(paths["bf16"], paths["nvfp4"], jobs=1)  # compiled, or read from Numba's cache
        for a, b in (
            ("bf16", "nvfp4"), ("bf16", "mxfp4"), ("bf16", "fp8"), ("bf16", "bf16"), ("nvfp4", "bf16"),
            ("mxfp4", "nvfp4"), ("nvfp4", "ct-nvfp4"), ("nvfp4", "nvfp4"),
            ("3d bf16", "3d nvfp4"), ("3d mxfp4", "3d nvfp4"), ("3d bf16", "3d mxfp4"),
        ):  # fmt: skip
            show(a, b, paths, options.repeat, count)
        print("memory, MB: imports alone, then a comparison")
        peaks(paths)
        if options.big:
            kept = {k: paths[k] for k in ("bf16", "nvfp4", "fp8", "3d bf16", "3d nvfp4", "3d mxfp4")}
            peaks(enlarged(root, kept, -(-int(options.big * 1000) // options.megabytes)))
    finally:
        shutil.rmtree(root)


def show(a: str, b: str, paths: dict[str, str], repeat: int, count: int) -> None:
    found = compare_checkpoints(paths[a], paths[b], jobs=1)
    spent = cpu_time(lambda: compare_checkpoints(paths[a], paths[b], jobs=1), repeat)
    source, read = 2 * sum(t.experts * t.rows * t.columns for t in found.tensors), stored(paths[a], paths[b])
    line = (
        f"{a:8} -> {b:9} {spent:6.3f} s  source {source / spent / 1e9:5.2f} GB/s, read {read / spent / 1e9:5.2f} GB/s"
    )
    if a == "bf16" and b in ("nvfp4", "mxfp4", "fp8"):
        mse, _ = in_torch(paths[a], paths[b], b, count)
        assert abs(mse / found.total.sums.mse - 1) < 1e-9
        theirs = cpu_time(lambda: in_torch(paths[a], paths[b], b, count), 2)
        line += f"; torch {theirs:.2f} s: {theirs / spent:.1f} times as long, the same error"
    print(line, flush=True)


def peaks(paths: dict[str, str]) -> None:
    for a, b, jobs in (("bf16", "nvfp4", 1), ("bf16", "fp8", 8), ("3d bf16", "3d nvfp4", 1), ("3d bf16", "3d nvfp4", 8),
                       ("3d mxfp4", "3d nvfp4", 8), ("3d bf16", "3d mxfp4", 8)):  # fmt: skip
        base, top = peak(paths[a], paths[b], jobs)
        size = stored(paths[a], paths[b]) / 1e9
        print(f"  {a} -> {b}, {size:.2f} GB of both, {jobs} threads: {base}, {top}", flush=True)


def enlarged(root: Path, paths: dict[str, str], times: int) -> dict[str, str]:
    """Each checkpoint ``times`` over: links to its files would be one file, so layers are renamed copies."""
    made = {}
    for kind, path in paths.items():
        into = root / f"{kind} big"
        into.mkdir()
        for at in range(times):
            for file in Path(path).glob("*.safetensors"):
                held = file.read_bytes()
                (into / f"{at:03}-{file.name}").write_bytes(held.replace(b"model.layers.", b"model.l%05d." % at, 1000))
        shutil.copy(Path(path) / "config.json", into)
        made[kind] = str(into)
    return made


if __name__ == "__main__":
    main()
