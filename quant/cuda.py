# mypy: ignore-errors
"""Quantise and pack, dequantise and compare, in Triton on torch tensors; the codes are those of ``rounding``.

Runs in Triton's interpreter without a GPU.  Division is ``tl.div_rn``; sums of errors are float64 per program and
added on the device afterwards, so they may differ from the CPU's in the last bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quant.metrics import ErrorSums
from quant.rounding import Rule, require_packable

_BYTES = 1024  # per program


def pack_fp4(w: torch.Tensor, step: torch.Tensor, block: int, rule: Rule = Rule.NEGATIVE) -> torch.Tensor:
    """See ``rounding.pack_fp4``: uint8 [..., K / 2] on the device of ``w``; ``step``: float32 [..., K / block]."""
    require_packable(tuple(step.shape), tuple(w.shape), block)
    out = torch.empty((*w.shape[:-1], w.shape[-1] // 2), dtype=torch.uint8, device=w.device)
    if out.numel():
        args = (w.contiguous(), step.contiguous(), out, out.numel(), block // 2, int(rule))
        _launch(_pack, out, args)
    return out


def error(w: torch.Tensor, packed: torch.Tensor, step: torch.Tensor, block: int) -> ErrorSums:
    """Errors of packed E2M1 codes against their source ``w`` [..., K]; ``step``: float32 [..., K / block]."""
    total = packed.numel()
    programs = triton.cdiv(total, _BYTES)
    sums = torch.zeros((5, programs), dtype=torch.float64, device=w.device)
    if total:
        _launch(
            _error, packed, (w.contiguous(), packed.contiguous(), step.contiguous(), sums, total, block // 2, programs)
        )
    four = sums[:4].sum(1).tolist()
    return ErrorSums(w.numel(), *four, float(sums[4].max()) if programs else 0.0)


def _launch(kernel, on: torch.Tensor, args) -> None:
    grid = (triton.cdiv(on.numel(), _BYTES),)
    if on.is_cuda:
        with torch.cuda.device(on.device):
            kernel[grid](*args, T=_BYTES, num_warps=4, enable_fp_fusion=False)
    else:
        kernel[grid](*args, T=_BYTES)


@triton.jit
def _code(w, step, rule: tl.constexpr):
    ratio = tl.where(step == 0.0, w * 0.0, tl.div_rn(w, step))
    a = tl.abs(ratio)
    if rule == 2:  # all ties down
        n = (a > 0.75).to(tl.int32) + (a > 1.75).to(tl.int32) + (a > 3.5).to(tl.int32)
    else:
        n = (a >= 0.75).to(tl.int32) + (a >= 1.75).to(tl.int32) + (a >= 3.5).to(tl.int32)
    n += (a > 0.25).to(tl.int32) + (a > 1.25).to(tl.int32) + (a > 2.5).to(tl.int32) + (a > 5.0).to(tl.int32)
    if rule == 0:
        negative = (ratio < 0.0).to(tl.int32)
    elif rule == 1:
        negative = (w.to(tl.int32, bitcast=True) < 0).to(tl.int32)
    else:
        negative = 1 - (w > 0.0).to(tl.int32)
    return n + negative * 8


@triton.jit
def _pack(w_ptr, step_ptr, out_ptr, total, per_block, rule: tl.constexpr, T: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    live = at < total
    step = tl.load(step_ptr + at // per_block, mask=live, other=1.0)
    low = tl.load(w_ptr + 2 * at, mask=live, other=0.0).to(tl.float32)
    high = tl.load(w_ptr + 2 * at + 1, mask=live, other=0.0).to(tl.float32)
    byte = _code(low, step, rule) + _code(high, step, rule) * 16
    tl.store(out_ptr + at, byte.to(tl.uint8), mask=live)


@triton.jit
def _value(code):
    m = code & 7
    size = tl.where(m < 5, m.to(tl.float32) * 0.5, tl.where(m == 5, 3.0, tl.where(m == 6, 4.0, 6.0)))
    return tl.where(code > 7, -size, size)


@triton.jit
def _error(w_ptr, packed_ptr, step_ptr, sums_ptr, total, per_block, programs, T: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    live = at < total
    byte = tl.load(packed_ptr + at, mask=live, other=0).to(tl.int32)
    step = tl.load(step_ptr + at // per_block, mask=live, other=0.0)
    a = tl.load(w_ptr + 2 * at, mask=live, other=0.0).to(tl.float64)
    b = tl.load(w_ptr + 2 * at + 1, mask=live, other=0.0).to(tl.float64)
    p, q = (_value(byte & 15) * step).to(tl.float64), (_value(byte >> 4) * step).to(tl.float64)
    c, d = a - p, b - q
    to = sums_ptr + tl.program_id(0)
    tl.store(to, tl.sum(c * c + d * d))
    tl.store(to + programs, tl.sum(a * a + b * b))
    tl.store(to + 2 * programs, tl.sum(p * p + q * q))
    tl.store(to + 3 * programs, tl.sum(a * p + b * q))
    tl.store(to + 4 * programs, tl.max(tl.maximum(tl.abs(c), tl.abs(d))))
