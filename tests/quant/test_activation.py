"""Activation and KV scales, and the three policies for those that were never calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from quant.activation import (
    FP8_DIVISOR,
    NVFP4_DIVISOR,
    Fill,
    Policy,
    fill,
    input_divisor,
    input_scale,
    kv_scale,
)
from quant.errors import NumericError


def f32(*x: float) -> np.ndarray:
    return np.array(x, np.float32)


def test_scales_from_an_amax():
    assert input_scale(2.5, NVFP4_DIVISOR) == np.float32(2.5) / np.float32(2688)
    assert input_scale(2.5, FP8_DIVISOR) == np.float32(2.5) / np.float32(448)
    assert input_scale(0.0, NVFP4_DIVISOR) == 0
    assert input_divisor(2.3) == np.float32(1) / np.float32(2.3) * np.float32(2688)
    assert kv_scale(None) == 1
    assert kv_scale(896.0) == 2
    assert kv_scale(0.0) == 1
    for bad in (-1.0, np.nan, np.inf):
        for make in (lambda x: input_scale(x, NVFP4_DIVISOR), input_divisor, kv_scale):
            with pytest.raises(NumericError):
                make(bad)
    with pytest.raises(NumericError, match="positive amax"):
        input_divisor(0.0)
    with pytest.raises(NumericError, match="inf"):
        input_divisor(1e-44)


def test_min_positive_takes_the_smallest_of_the_same_tensor():
    made = fill(f32(0.5, 0, 0.25, 3, 0), Fill(Policy.MIN_POSITIVE))
    assert made.scales.tolist() == [0.5, 0.25, 0.25, 3, 0.25]
    assert made.zeros.tolist() == [False, True, False, False, True]
    assert fill(f32(0, -0.0), Fill(Policy.MIN_POSITIVE)).scales.tolist() == [np.float32(1e-8)] * 2


def test_peer_max_prefers_the_experts_then_the_fused_set():
    experts, fused = f32(0.5, 0, 2, np.nan, np.inf), f32(7)
    assert fill(f32(0), Fill(Policy.PEER_MAX, (experts, fused))).value == 2
    assert fill(f32(0), Fill(Policy.PEER_MAX, (f32(0, 0), fused))).value == 7
    with pytest.raises(NumericError, match="no peer"):
        fill(f32(0), Fill(Policy.PEER_MAX, (f32(0),)))


def test_floor():
    assert fill(f32(0, 1), Fill(Policy.FLOOR, floor=0.125)).scales.tolist() == [0.125, 1]
    for bad in (None, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(NumericError, match="must be positive"):
            fill(f32(0), Fill(Policy.FLOOR, floor=bad))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_divisor_is_filled_so_that_it_means_the_same(dtype):
    zero, nan = np.array([np.inf, 4, 0.5], dtype), np.array([np.inf, 0], dtype)
    assert fill(zero, Fill(Policy.MIN_POSITIVE, divides=True)).scales.tolist() == [4, 4, 0.5]
    assert fill(zero, Fill(Policy.PEER_MAX, (f32(0, 7, 3, np.inf),), divides=True)).scales.tolist() == [3, 4, 0.5]
    assert fill(zero, Fill(Policy.FLOOR, floor=0.125, divides=True)).scales.tolist() == [8, 4, 0.5]
    assert fill(zero[:1], Fill(Policy.MIN_POSITIVE, divides=True)).value == np.float32(1) / np.float32(1e-8)
    assert fill(zero, Fill(Policy.MIN_POSITIVE, divides=True)).scales.dtype == dtype
    with pytest.raises(NumericError, match=r"\[1\] is not positive: 0"):
        fill(nan, Fill(Policy.FLOOR, floor=1.0, divides=True))
    with pytest.raises(NumericError, match="no reciprocal"):
        fill(zero, Fill(Policy.FLOOR, floor=1e-40, divides=True))


@pytest.mark.parametrize("policy", list(Policy))
def test_both_conventions_agree(policy):
    """Powers of two, whose reciprocals are exact: what is filled means the same in either."""
    scales, peers = f32(0, 0.25, 8), f32(2, 0.5)
    with np.errstate(divide="ignore"):
        other = fill(1 / scales, Fill(policy, (1 / peers,), 0.125, divides=True)).scales
    assert (1 / other).tolist() == fill(scales, Fill(policy, (peers,), 0.125)).scales.tolist()


@pytest.mark.parametrize("policy", list(Policy))
def test_a_negative_or_broken_scale_is_an_error_and_changes_nothing(policy):
    for value in (-0.5, np.nan, np.inf, -np.inf):
        scales = f32(0, 1, value)
        before = scales.tobytes()
        with pytest.raises(NumericError, match=r"\[2\]"):
            fill(scales, Fill(policy, (f32(1),), 1.0))
        assert scales.tobytes() == before


@pytest.mark.parametrize("policy", list(Policy))
def test_positive_values_are_never_touched_and_the_argument_is_not_changed(policy):
    scales = f32(0, 1e-40, 5)
    made = fill(scales, Fill(policy, (f32(9),), 2.0))
    assert scales[0] == 0
    assert made.scales[1:].tobytes() == scales[1:].tobytes()
    assert (made.scales > 0).all()
