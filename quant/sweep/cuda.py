# mypy: ignore-errors
"""The sweep in Triton, on torch tensors: one block per lane, pruned as in ``cpu``, the same winners.

The sixteen errors of a block are added in the reference's order by the lane that holds them, and no product is fused
into a sum (``enable_fp_fusion=False``), so the losses are the reference's bit for bit.  ``tl.div_rn``, not ``/``: on
CUDA that may be an ulp off, enough to cross a midpoint.  Without a GPU the kernel runs in Triton's interpreter
(TRITON_INTERPRET=1).
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from quant.sweep import candidates

_CONFIGS = [
    triton.Config({"T": blocks}, num_warps=warps)
    for blocks, warps in ((32, 1), (64, 2), (64, 1), (128, 4), (128, 2), (256, 8))
]
_INTERPRETED = 64


def best_codes(w: torch.Tensor, global_amax: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Best codes, uint8 [E, n], and candidates evaluated per block, int32 [E, n], both on the device of ``w``.

    ``w``: blocks of 16, [E, n, 16], contiguous, finite, float32, float16 or bfloat16; ``global_amax``: float32 [E].
    """
    experts, count = w.shape[:2]
    scale = candidates.scales(global_amax)
    pruned = candidates.prunable(global_amax)
    table = torch.from_numpy(scale).to(w.device)
    code = torch.empty((experts, count), dtype=torch.uint8, device=w.device)
    tried = torch.empty((experts, count), dtype=torch.int32, device=w.device)
    total = experts * count
    if total == 0:
        return code, tried
    args = (w, table, code, tried, total, count, pruned)
    if w.is_cuda:
        with torch.cuda.device(w.device):
            _tuned[lambda meta: (triton.cdiv(total, meta["T"]),)](*args, enable_fp_fusion=False)
    else:
        _sweep[(triton.cdiv(total, _INTERPRETED),)](*args, T=_INTERPRETED)
    return code, tried


@triton.jit
def round_e2m1(ratio):
    """The nearest E2M1 value of a ratio ≥ 0, ties to even: adding 1.5 · 2^23 · step rounds to a multiple of step."""
    ratio = tl.minimum(ratio, 6.0)
    magic = tl.where(ratio < 2.0, 6291456.0, tl.where(ratio < 4.0, 12582912.0, 25165824.0))
    return (ratio + magic) - magic


@triton.jit
def _square(a, scale):
    err = a - round_e2m1(tl.div_rn(a, scale)) * scale
    return err * err


@triton.jit
def _loss(scale, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    loss = _square(a0, scale) + _square(a8, scale)
    loss = loss + (_square(a1, scale) + _square(a9, scale))
    loss = loss + (_square(a2, scale) + _square(a10, scale))
    loss = loss + (_square(a3, scale) + _square(a11, scale))
    loss = loss + (_square(a4, scale) + _square(a12, scale))
    loss = loss + (_square(a5, scale) + _square(a13, scale))
    loss = loss + (_square(a6, scale) + _square(a14, scale))
    return loss + (_square(a7, scale) + _square(a15, scale))


@triton.jit
def largest_of(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    """The largest magnitude of sixteen tensors, element by element."""
    m0 = tl.maximum(tl.maximum(tl.abs(a0), tl.abs(a1)), tl.maximum(tl.abs(a2), tl.abs(a3)))
    m1 = tl.maximum(tl.maximum(tl.abs(a4), tl.abs(a5)), tl.maximum(tl.abs(a6), tl.abs(a7)))
    m2 = tl.maximum(tl.maximum(tl.abs(a8), tl.abs(a9)), tl.maximum(tl.abs(a10), tl.abs(a11)))
    m3 = tl.maximum(tl.maximum(tl.abs(a12), tl.abs(a13)), tl.maximum(tl.abs(a14), tl.abs(a15)))
    return tl.maximum(tl.maximum(m0, m1), tl.maximum(m2, m3))


@triton.jit
def _magnitude(w_ptr, at, live):
    return tl.abs(tl.load(w_ptr + at, mask=live, other=0.0).to(tl.float32))


@triton.jit
def first_unclipped(scale_ptr, amax):
    """The smallest candidate whose 6 · scale reaches ``amax``, 125 when none does."""
    low = tl.zeros_like(amax).to(tl.int32)
    high = low + 125
    for _ in tl.static_range(7):
        middle = (low + high) // 2
        fits = 6.0 * tl.load(scale_ptr + middle) >= amax
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, tl.minimum(middle + 1, high))
    return low


@triton.jit
def _sweep(w_ptr, scale_ptr, code_ptr, tried_ptr, total, count, pruned: tl.constexpr, T: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    live, at, row = block < total, block * 16, scale_ptr + (block // count) * 126
    a0 = _magnitude(w_ptr, at + 0, live)
    a1 = _magnitude(w_ptr, at + 1, live)
    a2 = _magnitude(w_ptr, at + 2, live)
    a3 = _magnitude(w_ptr, at + 3, live)
    a4 = _magnitude(w_ptr, at + 4, live)
    a5 = _magnitude(w_ptr, at + 5, live)
    a6 = _magnitude(w_ptr, at + 6, live)
    a7 = _magnitude(w_ptr, at + 7, live)
    a8 = _magnitude(w_ptr, at + 8, live)
    a9 = _magnitude(w_ptr, at + 9, live)
    a10 = _magnitude(w_ptr, at + 10, live)
    a11 = _magnitude(w_ptr, at + 11, live)
    a12 = _magnitude(w_ptr, at + 12, live)
    a13 = _magnitude(w_ptr, at + 13, live)
    a14 = _magnitude(w_ptr, at + 14, live)
    a15 = _magnitude(w_ptr, at + 15, live)
    amax = largest_of(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
    row = tl.where(live, row, scale_ptr)
    if pruned:
        low = first_unclipped(row, amax)
        high = tl.minimum(tl.maximum(low, 7) + 7, 125)
    else:
        low = tl.zeros_like(amax).to(tl.int32)
        high = low + 125
    best = tl.full([T], float("inf"), tl.float32)
    winner = tl.zeros([T], tl.int32)
    longest = tl.max(high - low)
    for up in range(longest + 1):
        k = tl.minimum(low + up, high)
        loss = _loss(tl.load(row + k), a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
        winner = tl.where(loss < best, k, winner)
        best = tl.where(loss < best, loss, best)
    down = 1
    clipped = amax - 6.0 * tl.load(row + tl.maximum(low - down, 0))
    while tl.max(((low >= down) & (clipped * clipped <= best)).to(tl.int32)) > 0:
        k = tl.maximum(low - down, 0)
        loss = _loss(tl.load(row + k), a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
        winner = tl.where(loss <= best, k, winner)
        best = tl.where(loss <= best, loss, best)
        down += 1
        clipped = amax - 6.0 * tl.load(row + tl.maximum(low - down, 0))
    tl.store(code_ptr + block, (winner + 1).to(tl.uint8), mask=live)
    tl.store(tried_ptr + block, tl.full([T], 0, tl.int32) + longest + down, mask=live)


_tuned = triton.autotune(configs=_CONFIGS, key=["total"])(_sweep)
