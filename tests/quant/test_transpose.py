"""The fast transpose is numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.cpu_transpose import transposed


@given(sides=st.tuples(st.integers(0, 70), st.integers(0, 70)), fill=st.booleans(), seed=st.integers(0, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_shape(dtype, sides, fill, seed):
    if fill:  # whole words
        sides = (sides[0] // 8 * 8, sides[1] // 8 * 8)
    table = np.random.default_rng(seed).integers(0, 1 << 8 * np.dtype(dtype).itemsize, sides).astype(dtype)
    table.flags.writeable = False
    out = transposed(table)
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, table.T)
