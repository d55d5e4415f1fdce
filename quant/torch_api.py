"""The numerical core for people who hold models in memory: the same functions on torch tensors.

A CPU tensor is viewed as numpy without a copy and a CUDA tensor goes to the Triton kernels; results come back as torch
tensors on the device of the input.  Needs the extra ``torch``.  E4M3 scales are returned as uint8 codes:
``view`` them as ``torch.float8_e4m3fn`` where a file wants that dtype (a reinterpretation, not a cast).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quant import activation, metrics, mx_to_nv, nvfp4
from quant.activation import Fill
from quant.backend import Backend
from quant.blocks import require_fit, require_whole
from quant.errors import NumericError
from quant.metrics import ErrorSums
from quant.nvfp4 import Method
from quant.quantised import Quantised
from quant.scheme import NVFP4, GlobalScale, Scheme
from quant.sweep import sweep as _sweep

Tensor = torch.Tensor


class NvFp4(NamedTuple):
    """An NVFP4 weight: ``packed`` uint8 [..., K / 2], ``scales`` uint8 [..., K / 16], ``global_scale`` float32."""

    packed: Tensor
    scales: Tensor
    global_scale: Tensor


class SweptTensors(NamedTuple):
    """As ``quant.sweep.Swept``: ``codes`` uint8 [..., K / 16], ``global_amax`` float32 [] or [E], mean candidates."""

    codes: Tensor
    global_amax: Tensor
    evaluated: float


def as_numpy(x: Tensor) -> NDArray[Any]:
    """``x`` (on a CPU) as numpy, sharing its memory; bfloat16 as uint16 words, one-byte floats as uint8 codes.

    Raises NumericError for a tensor that is not on a CPU.
    """
    x = x.detach()
    if x.device.type != "cpu":
        raise NumericError(f"a tensor on {x.device} cannot be viewed as numpy")
    if x.dtype == torch.bfloat16:
        return np.asarray(x.view(torch.int16).numpy()).view(np.uint16)
    if x.element_size() == 1 and x.dtype.is_floating_point:
        return np.asarray(x.view(torch.uint8).numpy())
    return np.asarray(x.numpy())


def largest(w: Tensor) -> float:
    """The largest magnitude of ``w``, exactly; raises NumericError where an element is NaN or infinite."""
    if w.device.type == "cpu":
        return float(nvfp4.shared_amax([as_numpy(w)]))
    low, high = torch.aminmax(w.detach()) if w.numel() else (torch.zeros(()), torch.zeros(()))
    top = max(-float(low), float(high))
    if not np.isfinite(top):
        at = torch.nonzero(~torch.isfinite(w))[0].tolist()
        raise NumericError(f"a weight is not finite, the first at {at}: {float(w[tuple(at)])}")
    return top


def shared_amax(weights: list[Tensor]) -> float:
    """The common amax of a fused set."""
    return max((largest(w) for w in weights), default=0.0)


def sweep(
    w: Tensor,
    global_amax: Tensor | float | None = None,
    *,
    per_expert: bool = False,
    hessian: Tensor | None = None,
) -> SweptTensors:
    """As ``quant.sweep.sweep`` on a torch weight; ``codes`` and ``global_amax`` come back as torch tensors.

    ``nvfp4``'s 126-step calibrator in one call: per-block amax is ``global_amax · value / 448``.
    """
    amax = _amax(w, global_amax, per_expert)
    if w.device.type == "cpu":
        h = None if hessian is None else as_numpy(hessian)
        codes, top, evaluated = _sweep(as_numpy(w), amax, per_expert=per_expert, hessian=h)
        return SweptTensors(torch.from_numpy(codes), torch.from_numpy(np.asarray(top)), evaluated)
    return _sweep_triton(w, amax, hessian)


def _sweep_triton(w: Tensor, amax: NDArray[np.float32], hessian: Tensor | None) -> SweptTensors:
    require_whole(tuple(w.shape), 16)
    each = amax.reshape(-1)
    if not w.numel():
        empty = torch.empty((*w.shape[:-1], w.shape[-1] // 16), dtype=torch.uint8, device=w.device)
        return SweptTensors(empty, torch.from_numpy(amax).to(w.device), 0.0)
    cut = w.detach().contiguous().reshape(len(each), -1, w.shape[-1] // 16, 16)
    if hessian is None:
        from quant.sweep import cuda  # Triton: imported where it is first used

        codes, tried = cuda.best_codes(cut.reshape(len(each), -1, 16), each)
    else:
        from quant.sweep import cuda_hessian

        codes, tried = cuda_hessian.best_codes(cut, each, hessian)
    shaped = codes.reshape(*w.shape[:-1], -1)
    top = torch.from_numpy(amax).to(w.device)
    return SweptTensors(shaped, top, float(tried.float().mean()) if tried.numel() else 0.0)


def _amax(w: Tensor, global_amax: Tensor | float | None, per_expert: bool) -> NDArray[np.float32]:
    if global_amax is None:
        own = [largest(expert) for expert in w] if per_expert else largest(w)
        return np.asarray(own, np.float32)
    largest(w)
    given = global_amax.detach().cpu().numpy() if isinstance(global_amax, Tensor) else global_amax
    return np.asarray(given, np.float32)


def quantise(
    w: Tensor,
    global_amax: Tensor | float | None = None,
    *,
    method: Method = Method.DYNAMIC,
    scheme: Scheme = NVFP4,
    per_expert: bool = False,
    hessian: Tensor | None = None,
) -> NvFp4:
    """As ``quant.nvfp4.quantise`` on a torch weight: saturating scales, clamped to [2^-9, 448], never NaN.

    On CUDA the methods are DYNAMIC, STATIC and SWEEP.
    """
    nvfp4.require_method(method, scheme)
    amax = _amax(w, global_amax, per_expert)
    if w.device.type == "cpu":
        h = None if hessian is None else as_numpy(hessian)
        made = nvfp4.quantise(as_numpy(w), amax, method=method, scheme=scheme, hessian=h)
        return _wrap(made)
    if method is Method.FOUR_OVER_SIX or scheme.global_scale is not GlobalScale.MULTIPLY:
        raise NumericError(f"{method} with {scheme.global_scale} scales runs on a CPU tensor only")
    return _quantise_triton(w, amax, method, scheme, hessian)


def _quantise_triton(
    w: Tensor, amax: NDArray[np.float32], method: Method, scheme: Scheme, hessian: Tensor | None
) -> NvFp4:
    size = scheme.block[0]
    require_whole(tuple(w.shape), size)
    ws2 = nvfp4.weight_scale_2(amax, peak=np.float32(1 if size == 32 else 6))
    if method is Method.SWEEP:
        codes = as_numpy(_sweep_triton(w, amax, hessian).codes.cpu())
    else:
        block = w.detach().reshape(*w.shape[:-1], -1, size).abs().amax(-1).float().cpu().numpy()
        wide = (-1, *(1,) * (w.ndim - 1)) if amax.ndim else ()
        if method is Method.STATIC:
            codes = nvfp4.static_scales(block, amax.reshape(wide))
        else:
            codes = nvfp4.dynamic_scales(block, ws2.reshape(wide))
    return with_scales(w, torch.from_numpy(codes).to(w.device), torch.from_numpy(ws2).to(w.device), scheme)


def with_scales(w: Tensor, scales: Tensor, global_scale: Tensor, scheme: Scheme = NVFP4) -> NvFp4:
    """``w`` quantised and packed under given scale codes (uint8 or float8_e4m3fn [..., K / block])."""
    if w.device.type == "cpu":
        return _wrap(nvfp4.with_scales(as_numpy(w), as_numpy(scales), as_numpy(global_scale.float()), scheme))
    from quant import cuda

    largest(w)
    require_fit(tuple(scales.shape), tuple(w.shape), scheme.block)
    step = _steps(scales, global_scale, scheme).to(w.device)
    packed = cuda.pack_fp4(w.detach(), step, scheme.block[0])
    return NvFp4(packed, scales.view(torch.uint8), global_scale)


def _steps(scales: Tensor, global_scale: Tensor, scheme: Scheme) -> Tensor:
    made = Quantised(scheme, np.empty(0, np.uint8), as_numpy(scales.cpu()), as_numpy(global_scale.float().cpu()))
    return torch.from_numpy(np.ascontiguousarray(made.steps()))


def error(w: Tensor, packed: Tensor, scales: Tensor, global_scale: Tensor, scheme: Scheme = NVFP4) -> ErrorSums:
    """Errors of an NVFP4 weight against its source ``w`` [..., K]."""
    if w.device.type == "cpu":
        made = Quantised(scheme, as_numpy(packed), as_numpy(scales), as_numpy(global_scale.float()))
        return metrics.error(as_numpy(w), made, Backend.CPU)
    from quant import cuda

    require_fit(tuple(scales.shape), tuple(w.shape), scheme.block)
    return cuda.error(w.detach(), packed, _steps(scales, global_scale, scheme).to(w.device), scheme.block[0])


def cast_mxfp4(
    packed: Tensor, scales: Tensor, name: str = "tensor", per_expert: bool = False
) -> tuple[NvFp4, mx_to_nv.Cast]:
    """MXFP4 (uint8 [..., K / 2] and E8M0 [..., K / 32]) as NVFP4 by the closed form, and the per-block outcome.

    Computed on the CPU, whose work it hardly is: scales change, codes are copied.
    """
    source = mx_to_nv.Source(as_numpy(packed.cpu()), as_numpy(scales.cpu()), name)
    made = mx_to_nv.cast(source, per_expert)
    out = _wrap(made.quantised)
    return NvFp4(*(part.to(packed.device) for part in out)), made


def fill_input_scales(scales: Tensor, how: Fill) -> Tensor:
    """``scales`` with zeros replaced by the policy ``how``; see ``quant.activation.fill``."""
    filled = activation.fill(as_numpy(scales.float().cpu()), how)
    return torch.from_numpy(filled.scales).to(scales.device)


def _wrap(made: Quantised) -> NvFp4:
    scale = np.asarray(1 if made.global_scale is None else made.global_scale, np.float32)
    return NvFp4(torch.from_numpy(made.stored), torch.from_numpy(np.asarray(made.scales)), torch.from_numpy(scale))
