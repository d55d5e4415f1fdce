# mypy: ignore-errors
"""The Hessian-weighted sweep in Triton: a lane is a row, a program a K block; each lane walks as in ``cpu_hessian``."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from quant.sweep import candidates
from quant.sweep.bounds import LARGEST, LEAST, floor
from quant.sweep.cuda import first_unclipped, largest_of, round_e2m1

_CONFIGS = [triton.Config({"T": rows}, num_warps=warps) for rows, warps in ((32, 1), (64, 2), (128, 4))]
_INTERPRETED = 32
_LEAST, _LARGEST = tl.constexpr(float(LEAST)), tl.constexpr(float(LARGEST))


def best_codes(w: torch.Tensor, global_amax: np.ndarray, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Best codes, uint8 [E, R, C], and candidates evaluated, int32 [E, R, C], both on the device of ``w``.

    ``w``: [E, R, C, 16], contiguous, finite; ``global_amax``: float32 [E]; ``hessian``: float32 [C, 16, 16].
    """
    experts, rows, columns = w.shape[:3]
    code = torch.empty((experts, rows, columns), dtype=torch.uint8, device=w.device)
    tried = torch.empty((experts, rows, columns), dtype=torch.int32, device=w.device)
    bound = torch.from_numpy(floor(hessian.cpu().numpy())).to(w.device)
    hessian = hessian.to(w.device).contiguous()
    for e in range(experts if rows * columns else 0):
        scale = candidates.scales(global_amax[e])
        safe = candidates.prunable(global_amax[e])
        table = torch.from_numpy(scale).to(w.device)
        args = (w[e], table, hessian, bound, code[e], tried[e], rows, columns, safe)
        if w.is_cuda:
            with torch.cuda.device(w.device):
                _tuned[lambda meta: (triton.cdiv(rows, meta["T"]), columns)](*args, enable_fp_fusion=False)
        else:
            _sweep[(triton.cdiv(rows, _INTERPRETED), columns)](*args, T=_INTERPRETED)
    return code, tried


@triton.jit
def _error(w, scale):
    a = tl.abs(w)
    err = a - round_e2m1(tl.div_rn(a, scale)) * scale
    return tl.where(w >= 0.0, err, -err)


@triton.jit
def _row(h_ptr, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15):
    total = tl.load(h_ptr) * d0
    total = total + tl.load(h_ptr + 1) * d1
    total = total + tl.load(h_ptr + 2) * d2
    total = total + tl.load(h_ptr + 3) * d3
    total = total + tl.load(h_ptr + 4) * d4
    total = total + tl.load(h_ptr + 5) * d5
    total = total + tl.load(h_ptr + 6) * d6
    total = total + tl.load(h_ptr + 7) * d7
    total = total + tl.load(h_ptr + 8) * d8
    total = total + tl.load(h_ptr + 9) * d9
    total = total + tl.load(h_ptr + 10) * d10
    total = total + tl.load(h_ptr + 11) * d11
    total = total + tl.load(h_ptr + 12) * d12
    total = total + tl.load(h_ptr + 13) * d13
    total = total + tl.load(h_ptr + 14) * d14
    return total + tl.load(h_ptr + 15) * d15


@triton.jit
def _quadratic(h_ptr, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15):
    total = _row(h_ptr, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d0
    total = total + _row(h_ptr + 16, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d1
    total = total + _row(h_ptr + 32, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d2
    total = total + _row(h_ptr + 48, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d3
    total = total + _row(h_ptr + 64, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d4
    total = total + _row(h_ptr + 80, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d5
    total = total + _row(h_ptr + 96, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d6
    total = total + _row(h_ptr + 112, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d7
    total = total + _row(h_ptr + 128, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d8
    total = total + _row(h_ptr + 144, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d9
    total = total + _row(h_ptr + 160, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d10
    total = total + _row(h_ptr + 176, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d11
    total = total + _row(h_ptr + 192, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d12
    total = total + _row(h_ptr + 208, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d13
    total = total + _row(h_ptr + 224, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d14
    total = total + _row(h_ptr + 240, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15) * d15
    return tl.where(total == total, total, float("inf"))


@triton.jit
def _loss(h_ptr, scale, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    d0 = _error(a0, scale)
    d1 = _error(a1, scale)
    d2 = _error(a2, scale)
    d3 = _error(a3, scale)
    d4 = _error(a4, scale)
    d5 = _error(a5, scale)
    d6 = _error(a6, scale)
    d7 = _error(a7, scale)
    d8 = _error(a8, scale)
    d9 = _error(a9, scale)
    d10 = _error(a10, scale)
    d11 = _error(a11, scale)
    d12 = _error(a12, scale)
    d13 = _error(a13, scale)
    d14 = _error(a14, scale)
    d15 = _error(a15, scale)
    return _quadratic(h_ptr, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15)


@triton.jit
def _square_if_flushed(w, scale):
    return tl.where(tl.div_rn(tl.abs(w), scale) <= 0.25, w * w, 0.0)


@triton.jit
def _kept(scale, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    total = _square_if_flushed(a0, scale)
    total += _square_if_flushed(a1, scale)
    total += _square_if_flushed(a2, scale)
    total += _square_if_flushed(a3, scale)
    total += _square_if_flushed(a4, scale)
    total += _square_if_flushed(a5, scale)
    total += _square_if_flushed(a6, scale)
    total += _square_if_flushed(a7, scale)
    total += _square_if_flushed(a8, scale)
    total += _square_if_flushed(a9, scale)
    total += _square_if_flushed(a10, scale)
    total += _square_if_flushed(a11, scale)
    total += _square_if_flushed(a12, scale)
    total += _square_if_flushed(a13, scale)
    total += _square_if_flushed(a14, scale)
    total += _square_if_flushed(a15, scale)
    return total


@triton.jit
def _beyond(sure, square, best):
    return (square > _LEAST) & (sure * square > tl.maximum(best, _LEAST))


@triton.jit
def _load(w_ptr, at, live):
    return tl.load(w_ptr + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _sweep(
    w_ptr, scale_ptr, hessian_ptr, bound_ptr, code_ptr, tried_ptr, rows, columns, safe: tl.constexpr, T: tl.constexpr
):
    column = tl.program_id(1)
    r = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    live, at, h_ptr, bound = (
        r < rows,
        (r * columns + column) * 16,
        hessian_ptr + column * 256,
        tl.load(bound_ptr + column),
    )
    a0 = _load(w_ptr, at + 0, live)
    a1 = _load(w_ptr, at + 1, live)
    a2 = _load(w_ptr, at + 2, live)
    a3 = _load(w_ptr, at + 3, live)
    a4 = _load(w_ptr, at + 4, live)
    a5 = _load(w_ptr, at + 5, live)
    a6 = _load(w_ptr, at + 6, live)
    a7 = _load(w_ptr, at + 7, live)
    a8 = _load(w_ptr, at + 8, live)
    a9 = _load(w_ptr, at + 9, live)
    a10 = _load(w_ptr, at + 10, live)
    a11 = _load(w_ptr, at + 11, live)
    a12 = _load(w_ptr, at + 12, live)
    a13 = _load(w_ptr, at + 13, live)
    a14 = _load(w_ptr, at + 14, live)
    a15 = _load(w_ptr, at + 15, live)
    amax = largest_of(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
    low = tl.zeros_like(amax).to(tl.int32)
    sure = tl.zeros_like(amax)
    if safe:
        sure = tl.where(amax <= _LARGEST, bound, 0.0)
        low = tl.where(sure > 0.0, first_unclipped(scale_ptr, amax), low)
    best = tl.full([T], float("inf"), tl.float32)
    winner, k, rising, tried, going = tl.zeros([T], tl.int32), low, low >= 0, 0, 1
    while going > 0:
        scale = tl.load(scale_ptr + k)
        loss = _loss(h_ptr, scale, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
        winner = tl.where((loss < best) | ((loss == best) & (k < winner)), k, winner)
        best = tl.minimum(best, loss)
        kept = _kept(scale, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
        was_rising = rising
        rising = rising & (k < 125) & (amax > 0.0) & ~_beyond(sure, kept, best)
        k = tl.where(rising, k + 1, tl.where(was_rising, low, k) - 1)
        clipped = amax - 6.0 * tl.load(scale_ptr + tl.maximum(k, 0))
        going = tl.max((rising | ((k >= 0) & ~_beyond(sure, clipped * clipped, best))).to(tl.int32))
        k = tl.maximum(k, 0)
        tried += 1
    tl.store(code_ptr + r * columns + column, (winner + 1).to(tl.uint8), mask=live)
    tl.store(tried_ptr + r * columns + column, tl.full([T], 0, tl.int32) + tried, mask=live)


_tuned = triton.autotune(configs=_CONFIGS, key=["rows", "columns"])(_sweep)
