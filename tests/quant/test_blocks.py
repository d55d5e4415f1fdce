"""Blocks against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import blocks
from quant.errors import NumericError

SHAPES = [(16,), (0,), (128, 128), (0, 0), (3, 5)]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), block=st.sampled_from(SHAPES))
def test_amax_and_spread_agree_with_a_loop(seed, block):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, [3, 300, 300]) * (rng.random(3) > 0.1))
    w = rng.standard_normal(shape).astype(np.float32)
    amax = blocks.amax(w, block)
    assert amax.shape == blocks.grid(shape, block)
    back = blocks.spread(amax, shape, block)
    full = (1,) * (3 - len(block)) + block
    for place in np.ndindex(amax.shape):
        size = [b or n for b, n in zip(full, shape, strict=True)]
        cut = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, size, strict=True))
        assert amax[place] == np.abs(w[cut]).max(initial=0)
        assert (back[cut] == amax[place]).all()
    rows = blocks.scale_rows(amax.shape, shape, block)
    if back.size:
        table = amax.reshape(-1, amax.shape[-1])[rows][:, :1]
        np.testing.assert_array_equal(table, back.reshape(-1, shape[-1])[:, :1])


@pytest.mark.parametrize("block", SHAPES)
@pytest.mark.parametrize("shape", [(2, 0, 32), (0, 32, 32), (2, 32, 0), (0, 0, 0)])
def test_the_amax_of_nothing_is_zero(shape, block):
    found = blocks.amax(np.empty(shape, np.float32), block)
    assert found.shape == blocks.grid(shape, block)
    assert not found.any()


def test_ragged_k_and_wrong_shapes_are_refused():
    with pytest.raises(NumericError, match="K = 40 is no multiple of the block size 16"):
        blocks.require_whole((3, 40), 16)
    with pytest.raises(NumericError, match="K = 0"):
        blocks.require_whole((3, 0), 16)
    with pytest.raises(NumericError, match=r"scales \(2, 3\) do not fit"):
        blocks.spread(np.ones((2, 3), np.float32), (2, 64), (16,))
    with pytest.raises(NumericError, match="need 2 axes"):
        blocks.grid((5,), (128, 128))
