"""Activation and KV-cache scales: from a calibrated amax, and in place of those that calibration never reached."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import place, require_finite

NVFP4_DIVISOR = np.float32(E2M1.max * E4M3.max)
FP8_DIVISOR = np.float32(E4M3.max)
LAST_RESORT = np.float32(1e-8)
"""What modelopt writes when a tensor has no positive scale at all (Model-Optimizer #1265)."""
Floats = NDArray[np.floating[Any]]
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
    """The smallest positive value of the same tensor (as a divisor the largest); 1e-8 when there is none."""
    PEER_MAX = "peer-max"
    """The largest scale of the same projection among the layer's experts, then of the fused set."""
    FLOOR = "floor"
    """A given value: a scale that multiplies."""


class Filled(NamedTuple):
    """A scale tensor without zeros, and where they were."""

    scales: Floats
    zeros: NDArray[np.bool_]
    value: float
    """What the zeros became."""


class Fill(NamedTuple):
    """A policy with what it needs: ``peers`` in order of preference (first the experts, then the fused set).

    ``divides``: scales, peers and what is written are divisors (compressed-tensors' input_global_scale).  Their zero is
    infinite and their largest the smallest.  ``floor`` is a scale that multiplies all the same: its reciprocal is
    written.
    """

    policy: Policy
    peers: Sequence[Floats] = ()
    floor: float | None = None
    divides: bool = False


def is_zero(scales: Floats | float, divides: bool) -> NDArray[np.bool_]:
    """Where scales say that calibration saw nothing: 0, as a divisor infinite."""
    return np.asarray(np.isposinf(scales) if divides else np.equal(scales, 0))


def fill(scales: Floats, how: Fill) -> Filled:
    """``scales`` (any float dtype and shape) with every exact zero replaced; positive values are never touched.

    Raises NumericError on a negative, NaN or infinite scale (an upstream fault that no policy may hide), when
    PEER_MAX finds no positive peer, and when FLOOR has no positive value.
    """
    zeros = is_zero(scales, how.divides)
    others = np.where(zeros, scales.dtype.type(1), scales)
    require_finite(others, "activation scale")
    wrong = others <= 0
    if wrong.any():
        first = int(np.argmax(wrong))
        found = float(scales.reshape(-1)[first])
        raise NumericError(f"activation scale {place(first, scales.shape)} is not positive: {found}")
    value = replacement(scales[~zeros], how)
    return Filled(np.where(zeros, scales.dtype.type(value), scales), zeros, value)


def replacement(live: Floats, how: Fill) -> float:
    """What a zero becomes in a tensor whose usable scales are ``live`` (positive, any float dtype).

    Raises NumericError as ``fill`` does where the policy has nothing to give.
    """
    least, most = (np.max, np.min) if how.divides else (np.min, np.max)
    if how.policy is Policy.PEER_MAX:
        for group in how.peers:
            usable = group[np.isfinite(group) & (group > 0)]
            if usable.size:
                return float(most(usable))
        raise NumericError("no peer has a positive activation scale")
    value = LAST_RESORT
    if how.policy is Policy.FLOOR:
        value = np.float32(how.floor or 0)
        if not (np.isfinite(value) and value > 0):
            raise NumericError(f"the floor of an activation scale must be positive, not {how.floor}")
    elif live.size:
        return float(least(live))
    with np.errstate(over="ignore"):
        written = np.float32(1) / value if how.divides else value
    if not np.isfinite(written):
        raise NumericError(f"the floor {how.floor} has no reciprocal in float32")
    return float(written)
