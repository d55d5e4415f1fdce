"""Activation and KV-cache scales: from a calibrated amax, and in place of those that calibration never reached."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import place, require_finite

NVFP4_DIVISOR = np.float32(E2M1.max * E4M3.max)
FP8_DIVISOR = np.float32(E4M3.max)
LAST_RESORT = np.float32(1e-8)
"""What modelopt writes when a tensor has no positive scale at all (Model-Optimizer #1265)."""
KV_CONSTANT = np.float32(1)
"""The KV scale of constant-amax mode."""


def input_scale(amax: NDArray[np.float32] | np.float32 | float, divisor: np.float32) -> NDArray[np.float32]:
    """amax / divisor in float32: NVFP4_DIVISOR (2688) for NVFP4 activations, FP8_DIVISOR (448) for FP8 and W4A8.

    0 stays 0: calibration saw nothing, and ``fill`` decides.  Raises NumericError on a negative or non-finite amax.
    """
    top = np.asarray(amax, np.float32)
    require_finite(top, "activation amax value")
    if (top < 0).any():
        raise NumericError(f"an activation amax is negative: {float(top.min())}")
    return np.asarray(top / divisor, np.float32)


def input_divisor(amax: NDArray[np.float32] | np.float32 | float) -> NDArray[np.float32]:
    """compressed-tensors' input_global_scale (1 / amax) · 2688, both steps rounded.

    Raises NumericError where amax is 0, negative or not finite, and where the result overflows.
    """
    top = np.asarray(amax, np.float32)
    require_finite(top, "activation amax value")
    if (top <= 0).any():
        raise NumericError(f"2688 / amax needs a positive amax, not {float(top.min())}")
    with np.errstate(over="ignore"):
        out = np.asarray(np.float32(1) / top * NVFP4_DIVISOR, np.float32)
    require_finite(out, "input divisor")
    return out


def kv_scale(amax: NDArray[np.float32] | np.float32 | float | None) -> NDArray[np.float32]:
    """amax / 448, or exactly 1.0 for None (constant-amax mode); an amax of 0 gives 1.0, which engines accept."""
    if amax is None:
        return np.asarray(KV_CONSTANT)
    scale = input_scale(amax, FP8_DIVISOR)
    return np.asarray(np.where(scale == 0, KV_CONSTANT, scale), np.float32)


class Policy(StrEnum):
    """What an activation scale of exactly zero becomes."""

    MIN_POSITIVE = "min-positive"
    """The smallest positive value of the same tensor; 1e-8 when there is none."""
    PEER_MAX = "peer-max"
    """The largest scale of the same projection among the layer's experts, then of the fused set."""
    FLOOR = "floor"
    """A given value."""


class Filled(NamedTuple):
    """A scale tensor without zeros, and where they were."""

    scales: NDArray[np.float32]
    zeros: NDArray[np.bool_]
    value: np.float32
    """What the zeros became."""


class Fill(NamedTuple):
    """A policy with what it needs: ``peers`` in order of preference (first the experts, then the fused set)."""

    policy: Policy
    peers: Sequence[NDArray[np.float32]] = ()
    floor: float | None = None


def fill(scales: NDArray[np.float32], how: Fill) -> Filled:
    """``scales`` (float32, any shape) with every exact zero replaced; positive values are never touched.

    Raises NumericError on a negative, NaN or infinite scale (an upstream fault that no policy may hide), when
    PEER_MAX finds no positive peer, and when FLOOR has no positive value.
    """
    require_finite(scales, "activation scale")
    negative = scales < 0
    if negative.any():
        first = int(np.argmax(negative))
        found = float(scales.reshape(-1)[first])
        raise NumericError(f"activation scale {place(first, scales.shape)} is negative: {found}")
    zeros = scales == 0
    value = _replacement(scales, how)
    return Filled(np.where(zeros, value, scales), zeros, value)


def _replacement(scales: NDArray[np.float32], how: Fill) -> np.float32:
    if how.policy is Policy.MIN_POSITIVE:
        live = scales[scales > 0]
        return np.float32(live.min()) if live.size else LAST_RESORT
    if how.policy is Policy.FLOOR:
        value = np.float32(how.floor or 0)
        if not (np.isfinite(value) and value > 0):
            raise NumericError(f"the floor of an activation scale must be positive, not {how.floor}")
        return value
    for group in how.peers:
        live = group[np.isfinite(group) & (group > 0)]
        if live.size:
            return np.float32(live.max())
    raise NumericError("no peer has a positive activation scale")
