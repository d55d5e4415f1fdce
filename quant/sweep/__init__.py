"""The least-squares choice of NVFP4 block scales: the contract and the dispatch.

For each block of 16 the sweep tries the 126 positive finite E4M3 values as block scale and keeps the one with the
least Σ (w - quantised w)², or least dwᵀ H dw where a Hessian is given.  Of equal losses the smallest scale wins.
``reference`` is the definition; ``cpu`` (Numba) and ``cuda`` (Triton) return the same winner on every finite input.
Formula: the exporter's MSE calibrator; candidates and order of rounding are in ``candidates``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.backend import Backend
from quant.blocks import require_whole
from quant.errors import NumericError
from quant.floats import Floats, largest, require_finite, widen, words
from quant.sweep import candidates

BLOCK = 16


class Swept(NamedTuple):
    """The outcome of a sweep over a weight [..., K]."""

    codes: NDArray[np.uint8]
    """E4M3 block scales, [..., K / 16], each 1 … 126."""
    global_amax: NDArray[np.float32]
    """The amax the scales refer to, shape [] or [E]; weight_scale_2 = global_amax / (6 · 448)."""
    evaluated: float
    """Candidates tried per block, on average."""


def sweep(
    w: Floats,
    global_amax: NDArray[np.float32] | float | None = None,
    *,
    per_expert: bool = False,
    hessian: NDArray[np.float32] | None = None,
    backend: Backend = Backend.CPU,
) -> Swept:
    """The best E4M3 block scales of ``w``: float32, float16 or bfloat16 (uint16 words), [R, K] or [E, R, K].

    ``global_amax``: None takes the amax of ``w``, of each expert alone with ``per_expert``; a float or float32 []
    is shared by all (a fused set hands in its common amax); float32 [E] gives each expert its own.  ``hessian``:
    float32 [K / 16, 16, 16].  A zero block gets code 1, as every loss is 0; so does an all-zero tensor.
    Raises NumericError on NaN or infinity (with the position), on ragged K and on an amax that is negative,
    not finite or of the wrong shape.
    """
    if w.ndim not in (2, 3) or (per_expert and w.ndim != 3):
        raise NumericError(f"a sweep takes [R, K] or [E, R, K] (per expert only the latter), not shape {w.shape}")
    require_whole(w.shape, BLOCK)
    own = [largest(expert) for expert in w] if per_expert else [largest(w)]
    amax = np.asarray(own if per_expert else own[0], np.float32) if global_amax is None else _checked(global_amax, w)
    experts = len(w) if amax.ndim else 1
    columns = w.shape[-1] // BLOCK
    if hessian is not None:
        _check_hessian(hessian, columns)
    if not w.size:
        return Swept(np.empty((*w.shape[:-1], columns), np.uint8), amax, 0.0)
    cut = np.ascontiguousarray(words(w)[1]).reshape(experts, -1, columns, BLOCK)
    each = amax.reshape(experts)
    if backend is Backend.CPU:
        codes, work = _on_cpu(cut, each, hessian)
    else:
        codes, work = _by_definition(cut, each, hessian)
    return Swept(codes.reshape(*w.shape[:-1], columns), amax, work / codes.size)


def _on_cpu(
    cut: Floats, amax: NDArray[np.float32], hessian: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], int]:
    if hessian is not None:
        from quant.sweep import cpu_hessian  # Numba: imported where it is first used

        return cpu_hessian.best_codes(cut, amax, np.ascontiguousarray(hessian))
    from quant.sweep import cpu

    return cpu.best_codes(cut.reshape(len(cut), -1, BLOCK), amax)


def _by_definition(
    cut: Floats, amax: NDArray[np.float32], hessian: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], int]:
    from quant.sweep import reference

    codes = np.empty(cut.shape[:-1], np.uint8)
    take = max(1, 2048 // max(cut.shape[2], 1))  # rows at a time
    for e, scale in enumerate(candidates.scales(amax)):
        for r in range(0, cut.shape[1], take):
            rows = widen(cut[e, r : r + take])
            w_NB = rows.reshape(-1, BLOCK)
            if hessian is None:
                best = reference.best_codes(w_NB, scale[None])
            else:
                best = reference.best_codes_hessian(w_NB, scale[None], np.tile(hessian, (len(rows), 1, 1)))
            codes[e, r : r + take] = best.reshape(rows.shape[:-1])
    return codes, codes.size * candidates.COUNT


def _checked(global_amax: NDArray[np.float32] | float, w: Floats) -> NDArray[np.float32]:
    amax = np.asarray(global_amax, np.float32)
    if amax.shape not in ((), (len(w),)) or (amax.ndim and w.ndim != 3):
        raise NumericError(f"global amax has shape {amax.shape}; a weight {w.shape} takes [] or one value per expert")
    require_finite(amax, "global amax value")
    if (amax < 0).any():
        raise NumericError(f"a global amax is negative: {float(amax.min())}")
    return amax


def _check_hessian(hessian: NDArray[np.float32], columns: int) -> None:
    if hessian.dtype != np.float32 or hessian.shape != (columns, BLOCK, BLOCK):
        raise NumericError(
            f"the Hessian must be float32 [{columns}, {BLOCK}, {BLOCK}], not {hessian.dtype} {hessian.shape}"
        )
    require_finite(hessian, "Hessian value")
