"""The scale sweep against the exporter's torch reference, on the same cores in one run.

    python benchmarks/sweep.py [--rows 8192] [--columns 4096] [--repeat 5] [--skip-reference] [--only NAME]

Three bf16 weights: Gaussian, Student-t (3 degrees of freedom), and a mixture shaped like a trained layer (rows and
columns of unequal size, some of them outliers).  The reference is the exporter's loop, 126 steps in torch over blocks
of 16; it runs once per weight, in row chunks, and every winner is compared.  With a GPU the Triton kernel is timed too.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc

import numpy as np
import torch

from quant import sweep as sweep_room
from quant import threads
from quant.floats import narrow_bf16, widen
from quant.sweep import candidates

BLOCK = 16
H100_FP32 = 66.9e12  # peak FP32 of an H100 SXM, fused multiply-adds counted as two


def weights(rows: int, columns: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal((rows, columns), np.float32)
    layer = rng.standard_normal((rows, columns), np.float32)
    layer *= np.exp(0.35 * rng.standard_normal((rows, 1), np.float32))
    layer *= np.exp(0.25 * rng.standard_normal((1, columns), np.float32))
    layer[:, rng.integers(0, columns, max(1, columns // 512))] *= np.float32(6)
    student = rng.standard_t(3, (rows, columns)).astype(np.float32)
    return {
        name: narrow_bf16(x * np.float32(0.02))
        for name, x in (("gaussian", gaussian), ("student-t", student), ("layer-shaped", layer))
    }


def torch_reference(w: np.ndarray, global_amax: np.float32, chunk: int = 1 << 18) -> tuple[np.ndarray, float]:
    """Codes by the exporter's loop: fake-quantise under each candidate, keep the losses, take the first least."""
    scale_K = torch.from_numpy(candidates.scales(np.asarray(global_amax)).copy())
    blocks = torch.from_numpy(w.view(np.int16)).view(torch.bfloat16).reshape(-1, BLOCK)
    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    odd, values = bounds[[1, 3, 5]], torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    out = torch.empty(len(blocks), dtype=torch.uint8)
    start = time.perf_counter()
    for first in range(0, len(blocks), chunk):
        x = blocks[first : first + chunk].float().abs()
        losses = []
        for scale in scale_K:
            ratio = x / scale
            order = torch.searchsorted(bounds, ratio, out_int32=True)
            order = order + (ratio.unsqueeze(-1) == odd).any(-1).int()  # ties to even, as the exporter does it
            losses.append(torch.nn.functional.mse_loss(x, values[order] * scale, reduction="none").sum(1))
        out[first : first + chunk] = torch.stack(losses).argmin(0).to(torch.uint8) + 1
    return out.numpy(), time.perf_counter() - start


def best_of(repeat: int, run) -> tuple[float, object]:  # type: ignore[no-untyped-def]
    times, result = [], None
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def peak_beyond(run) -> float:  # type: ignore[no-untyped-def]
    """MiB of arrays alive at once at the peak of ``run``, its result included, as tracemalloc counts them."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def on_gpu(w: np.ndarray, codes: np.ndarray) -> None:
    from quant import torch_api

    x = torch.from_numpy(w.view(np.int16)).view(torch.bfloat16).cuda()
    top = float(torch.from_numpy(widen(w)).abs().max())
    swept = torch_api.sweep(x, top)
    from quant.sweep import cuda

    each = np.asarray([top], np.float32)
    cut = x.reshape(1, -1, BLOCK)
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        cuda.best_codes(cut, each)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    work = swept.evaluated * w.size * 7 / (min(times) / 1000)  # min, rounding (2), product, difference, square, sum
    same = bool((swept.codes.cpu().numpy() == codes).all())
    print(
        f"  GPU {torch.cuda.get_device_name()}: {min(times):.3f} ms, {swept.evaluated:.1f} candidates per block, "
        f"{work / H100_FP32:.1%} of an H100's FP32 peak, same winners: {same}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--skip-reference", action="store_true")
    parser.add_argument("--only", help="one of the weights: gaussian, student-t, layer-shaped")
    options = parser.parse_args()
    print(
        f"{options.rows} x {options.columns} bf16, {threads.cores()} cores, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    sweep_room.sweep(np.zeros((2, 32), np.uint16))  # compile
    for name, w in weights(options.rows, options.columns).items():
        if options.only not in (None, name):
            continue
        seconds, swept = best_of(options.repeat, lambda w=w: sweep_room.sweep(w))
        extra = peak_beyond(lambda w=w: sweep_room.sweep(w))
        both = (w.nbytes + swept.codes.nbytes) / 2**20
        print(
            f"{name}: sweep {seconds:.3f} s, {swept.evaluated:.2f} candidates per block, peak memory input + "
            f"{extra:.0f} MiB = {(w.nbytes / 2**20 + extra) / both:.2f} x (input + output)"
        )
        if not options.skip_reference:
            codes, taken = torch_reference(w, swept.global_amax)
            differ = int((codes.reshape(swept.codes.shape) != swept.codes).sum())
            print(
                f"  exporter's loop in torch {taken:.1f} s: {taken / seconds:.0f} times as long, "
                f"{differ} of {codes.size} winners differ"
            )
        if torch.cuda.is_available():
            on_gpu(w, swept.codes)
        else:
            print("  no GPU here: the Triton kernel was not timed")


if __name__ == "__main__":
    main()
