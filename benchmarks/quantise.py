"""Quantise + pack and dequantise + error against the exporter's torch functions, on the same cores in one run.

    python benchmarks/quantise.py [--rows 8192] [--columns 4096] [--repeat 7]

The exporter's functions are modelopt's NVFP4QTensor.quantize and .dequantize with a mean squared error, run as they are
where modelopt is installed; otherwise the same steps in torch (searchsorted, tie repair, pack), labelled so.  Memory is
the peak of the arrays alive at once.  Where other programs use the cores, wall time says little: the one-core
run also counts the processor time it was given.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
import tracemalloc

import numpy as np
import torch

from quant import fp8, metrics, mx, mx_to_nv, nvfp4, threads
from quant.floats import narrow_bf16
from quant.scheme import FP8_BLOCK, MXFP4, MXFP8, NVFP4_DIVIDE


def best_of(repeat: int, run, clock=time.perf_counter) -> float:  # type: ignore[no-untyped-def]
    times = []
    for _ in range(repeat):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def peak_beyond(run) -> float:  # type: ignore[no-untyped-def]
    """MiB of arrays alive at once at the peak of ``run``, its result included, as tracemalloc counts them."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def exporter(w: torch.Tensor):  # type: ignore[no-untyped-def]
    """The exporter's quantise and its dequantise + mean squared error, and what they are called."""
    if importlib.util.find_spec("modelopt"):
        from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

        q, s, g = NVFP4QTensor.quantize(w, 16)

        def error() -> float:
            back = q.dequantize(torch.float32, scale=s, double_scale=g, block_sizes={-1: 16})
            return float(torch.nn.functional.mse_loss(back, w.float()))

        return "modelopt", lambda: NVFP4QTensor.quantize(w, 16), error, q._quantized_data.numpy()
    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def quantise() -> tuple[torch.Tensor, torch.Tensor]:
        block = w.view(*w.shape[:-1], -1, 16)
        g = w.abs().amax().float() / 2688
        s = (block.abs().amax(-1).float() / (6 * g)).clamp(2**-9, 448).to(torch.float8_e4m3fn).float() * g
        r = (block / s.unsqueeze(-1)).view(w.shape)
        sign, a = (r < 0).to(torch.uint8), r.abs()
        code = torch.searchsorted(bounds, a, out_int32=True).to(torch.uint8)
        code = (sign << 3) + code + torch.any(a.unsqueeze(-1) == bounds[[1, 3, 5]], dim=-1).to(torch.uint8)
        return (code[..., 1::2] << 4) | code[..., 0::2], s

    packed, s = quantise()

    def error() -> float:
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
        back = values[codes].view(*s.shape, 16) * s.unsqueeze(-1)
        return float(torch.nn.functional.mse_loss(back.view(w.shape), w.float()))

    return "the exporter's steps", quantise, error, packed.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    cores = threads.cores()
    n = narrow_bf16(np.random.default_rng(0).standard_normal((options.rows, options.columns), np.float32))
    w = torch.from_numpy(n.view(np.int16)).view(torch.bfloat16)
    print(
        f"{options.rows} x {options.columns} bf16 ({n.nbytes / 2**20:.0f} MiB), {cores} cores, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    made = nvfp4.quantise(n)
    metrics.error(n, made)
    name, their_quantise, their_error, packed = exporter(w)
    assert (packed == made.stored).all()
    ours = best_of(options.repeat, lambda: nvfp4.quantise(n))
    theirs = best_of(2, their_quantise)
    print(f"quantise + pack: {ours:.4f} s, {name} {theirs:.2f} s: {theirs / ours:.0f} times as long, the same bytes")
    extra = peak_beyond(lambda: nvfp4.quantise(n)) + n.nbytes / 2**20
    both = (n.nbytes + made.stored.nbytes + made.scales.nbytes) / 2**20
    print(f"  peak memory {extra:.0f} MiB = {extra / both:.2f} x (input + output)")
    ours = best_of(options.repeat, lambda: metrics.error(n, made))
    theirs = best_of(2, their_error)
    rate = n.nbytes / ours / 1e9
    print(
        f"dequantise + MSE: {ours:.4f} s = {rate:.2f} GB/s of source, {rate / cores:.2f} per core; "
        f"{name} {theirs:.2f} s: {theirs / ours:.0f} times as long"
    )
    wall = best_of(options.repeat, lambda: one_core(n, made))
    cpu = best_of(options.repeat, lambda: one_core(n, made), time.process_time)
    print(
        f"  on one core {n.nbytes / wall / 1e9:.2f} GB/s by wall time, "
        f"{n.nbytes / cpu / 1e9:.2f} GB/s by processor time"
    )
    extra = peak_beyond(lambda: metrics.error(n, made))
    print(f"  peak memory beyond input and codes {extra:.0f} MiB")
    others(n, options.repeat)


def one_core(n: np.ndarray, made) -> None:  # type: ignore[no-untyped-def]
    """The same work, its parts one after the other in this thread."""
    run = threads.run
    try:
        threads.run = lambda work, count, grain: [work(a, min(a + grain, count)) for a in range(0, count, grain)]
        metrics.error(n, made)
    finally:
        threads.run = run


def others(n: np.ndarray, repeat: int) -> None:
    source = mx.quantise(n)
    runs = {
        "NVFP4 static": lambda: nvfp4.quantise(n, method=nvfp4.Method.STATIC),
        "NVFP4 sweep + pack": lambda: nvfp4.quantise(n, method=nvfp4.Method.SWEEP),
        "NVFP4 four-over-six": lambda: nvfp4.quantise(n, method=nvfp4.Method.FOUR_OVER_SIX),
        "NVFP4 compressed-tensors": lambda: nvfp4.quantise(n, scheme=NVFP4_DIVIDE),
        "MXFP4": lambda: mx.quantise(n, MXFP4),
        "MXFP8": lambda: mx.quantise(n, MXFP8),
        "FP8 128 x 128": lambda: fp8.quantise(n, FP8_BLOCK),
        "MXFP4 to NVFP4": lambda: mx_to_nv.cast(mx_to_nv.Source(source.stored, source.scales)),
    }
    for name, run in runs.items():
        run()
        seconds = best_of(repeat, run)
        print(f"{name}: {seconds:.4f} s = {n.nbytes / seconds / 1e9:.2f} GB/s of bf16")


if __name__ == "__main__":
    main()
