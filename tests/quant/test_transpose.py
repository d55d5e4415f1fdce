"""Matrices turned by the kernel are what numpy says, whole or put beside each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import cpu_transpose

SIDES = st.one_of(st.integers(1, 140), st.sampled_from([8, 16, 64, 72, 128, 136]))


@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.uint8, np.uint16]))
def test_transposed(rows, columns, seed, dtype):
    table = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (rows, columns), dtype, endpoint=True)
    table.setflags(write=False)
    made = cpu_transpose.transposed(table)
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, table.T)


@given(
    parts=st.lists(st.one_of(st.integers(1, 70), st.sampled_from([8, 64, 72])), min_size=1, max_size=4),
    columns=SIDES,
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_put_side_by_side(parts, columns, seed, dtype):
    table = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (sum(parts), columns), dtype, endpoint=True)
    out, at = np.zeros((columns, len(table)), dtype), 0
    for rows in parts:
        cpu_transpose.put(table[at : at + rows], out, at)
        at += rows
    np.testing.assert_array_equal(out, table.T)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_nothing_to_turn(shape):
    assert cpu_transpose.transposed(np.zeros(shape, np.uint8)).shape == shape[::-1]
