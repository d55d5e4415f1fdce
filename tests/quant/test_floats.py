"""Words, widening and the exact amax."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import NumericError
from quant.floats import Word, largest, narrow_bf16, round_to, widen
from tests.quant.draws import finite_bits, stored_as, words


def test_every_half_and_every_bfloat16_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16)
    half = widen(every.view(np.float16))
    np.testing.assert_array_equal(half.view(np.uint32), every.view(np.float16).astype(np.float32).view(np.uint32))
    theirs = every.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(widen(every), theirs)
    np.testing.assert_array_equal(widen(every.view(ml_dtypes.bfloat16)), theirs)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rounding_to_bfloat16_is_that_of_ml_dtypes(seed):
    x = np.random.default_rng(seed).integers(0, 1 << 32, 500, np.uint32).view(np.float32)
    x[:64] = (np.arange(64, dtype=np.uint32) * 0x4000 + 0x3F800000).view(np.float32)  # ties among them
    theirs = x.astype(ml_dtypes.bfloat16)
    finite = ~np.isnan(x)
    np.testing.assert_array_equal(narrow_bf16(x)[finite], theirs.view(np.uint16)[finite])
    np.testing.assert_array_equal(round_to(x, Word.BFLOAT16), theirs.astype(np.float32))
    assert np.isnan(widen(narrow_bf16(x))[~finite]).all()


def test_rounding_to_half_overflows_to_infinity_and_float32_stays():
    x = np.array([65519, 65520, -1e9, 2.0**-25, 1.0], np.float32)
    np.testing.assert_array_equal(round_to(x, Word.FLOAT16), np.array([65504, np.inf, -np.inf, 0, 1], np.float32))
    assert round_to(x, Word.FLOAT32) is x


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), word=words)
def test_largest_is_exact(seed, word):
    x = stored_as(finite_bits(np.random.default_rng(seed), (7, 9)), word)
    assert largest(x) == np.abs(widen(x)).max()
    assert largest(x.T[::2]) == np.abs(widen(x.T[::2])).max()


def test_largest_of_nothing_and_of_minus_zero_is_zero():
    assert largest(np.zeros((0, 16), np.float32)) == 0
    assert largest(np.array([[-0.0]], np.float32)).tobytes() == np.float32(0).tobytes()


@pytest.mark.parametrize("word", list(Word))
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFF800000])
def test_largest_names_the_place_of_nan_and_infinity(word, bits):
    x = stored_as(np.ones((1200, 1000), np.float32), word)
    shift = {Word.FLOAT32: 0, Word.BFLOAT16: 16, Word.FLOAT16: 16}[word]
    value = bits >> shift if word is not Word.FLOAT16 else {0x7FC00000: 0x7E00, 0xFF800000: 0xFC00}[bits]
    x.view(np.uint32 if word is Word.FLOAT32 else np.uint16)[1111, 7] = value
    with pytest.raises(NumericError, match=r"a weight is not finite, the first at \[1111, 7\]: (nan|-inf)"):
        largest(x)


def test_other_dtypes_are_refused():
    with pytest.raises(NumericError, match="float64"):
        widen(np.ones(3))
