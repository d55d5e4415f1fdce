"""Encode and decode against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.cast import decode, encode, is_nan, magnitudes, pack_nibbles, thresholds, unpack_nibbles
from quant.codes import E2M1, E4M3, E5M2, E8M0, FloatCode
from quant.errors import NumericError
from tests.quant.draws import finite_bits, neighbours

SIGNED = [E2M1, E4M3, E5M2]
FORMATS = [*SIGNED, E8M0]
by_name = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
signed = pytest.mark.parametrize("fmt", SIGNED, ids=lambda fmt: fmt.name)


def meaning(fmt: FloatCode, code: int) -> Fraction:
    """The value of a finite code, from the definition of the format, as an exact fraction."""
    sign = -1 if fmt.signed and code >> (fmt.bits - 1) else 1
    body = code & ((1 << (fmt.ebits + fmt.mbits)) - 1)
    exponent, mantissa = divmod(body, 1 << fmt.mbits)
    if fmt is E8M0:
        return Fraction(2) ** (code - 127)
    if exponent == 0:
        return sign * Fraction(mantissa, 1 << fmt.mbits) * Fraction(2) ** (1 - fmt.bias)
    return sign * (1 + Fraction(mantissa, 1 << fmt.mbits)) * Fraction(2) ** (exponent - fmt.bias)


@cache
def finite(fmt: FloatCode) -> list[tuple[int, Fraction]]:
    codes = range(1 << (fmt.bits - int(fmt.signed)))
    return [(c, meaning(fmt, c)) for c in codes if np.isfinite(fmt.values[c])]


def nearest(fmt: FloatCode, x: float) -> int:
    """The code of the nearest finite value, ties to the even code, by comparing exact distances to all of them."""
    size = abs(Fraction(x))
    best = min(finite(fmt), key=lambda pair: (abs(pair[1] - size), pair[0] & 1))[0]
    return best | (int(np.signbit(np.float32(x))) << (fmt.bits - 1) if fmt.signed else 0)


@by_name
def test_every_code_means_what_the_format_says(fmt):
    for code in range(1 << fmt.bits):
        value = float(fmt.values[code])
        if code in fmt.nan:
            assert np.isnan(value)
        elif code in fmt.inf:
            assert np.isinf(value)
        else:
            assert Fraction(value) == meaning(fmt, code)
    np.testing.assert_array_equal(is_nan(fmt, np.arange(1 << fmt.bits, dtype=np.uint8)), np.isnan(fmt.values))


@by_name
def test_encode_is_exact_at_every_threshold_and_one_step_beside_it(fmt):
    table = magnitudes(fmt)
    middle = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    x = neighbours(np.concatenate([table, middle, thresholds(fmt)]))
    if not fmt.signed:
        x = x[x > 0]
    made = encode(fmt, x)
    for value, code in zip(x.tolist(), made.codes.tolist(), strict=True):
        assert code == nearest(fmt, value), value


@signed
def test_every_finite_code_survives_the_round_trip(fmt):
    codes = np.array([c for c in range(1 << fmt.bits) if np.isfinite(fmt.values[c])], np.uint8)
    made = encode(fmt, decode(fmt, codes))
    np.testing.assert_array_equal(made.codes, codes)
    assert not made.saturated.any()
    assert not made.flushed.any()


@signed
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_encode_of_any_float_is_the_nearest_code(fmt, seed):
    x = finite_bits(np.random.default_rng(seed), (40,))
    x[:20] = np.random.default_rng(seed).standard_normal(20).astype(np.float32) * np.float32(fmt.max / 3)
    for value, code in zip(x.tolist(), encode(fmt, x).codes.tolist(), strict=True):
        assert code == nearest(fmt, value), value


@signed
def test_what_saturates_and_what_is_flushed_is_told(fmt):
    half = np.float32(fmt.smallest / 2)
    step = np.float32(np.inf)
    top = np.float32(fmt.max)
    x = np.array(
        [top, np.nextafter(top, step), 3e38, -3e38, half, np.nextafter(half, step), -half, 0.0, -0.0], np.float32
    )
    made = encode(fmt, x)
    assert made.saturated.tolist() == [False, True, True, True, False, False, False, False, False]
    assert made.flushed.tolist() == [False, False, False, False, True, False, True, False, False]
    assert np.isfinite(decode(fmt, made.codes)).all()
    assert made.codes[-1] == 1 << (fmt.bits - 1)  # -0.0 keeps its sign


def test_464_is_the_midpoint_that_saturates_to_448():
    x = np.array([448, 464, 465, 1e30, -464], np.float32)
    assert encode(E4M3, x).codes.tolist() == [0x7E, 0x7E, 0x7E, 0x7E, 0xFE]


@by_name
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000])
def test_nan_and_infinity_are_refused_with_their_place(fmt, bits):
    x = np.ones((3, 4), np.float32)
    x.view(np.uint32)[2, 1] = bits
    with pytest.raises(NumericError, match=r"1 of 12 values are not finite, the first at \[2, 1\]: -?(nan|inf)"):
        encode(fmt, x)


@pytest.mark.parametrize("value", [0.0, -1.0, -0.0])
def test_e8m0_refuses_what_it_cannot_say(value):
    with pytest.raises(NumericError, match=r"e8m0 has no code for .* at \[1\]"):
        encode(E8M0, np.array([1, value], np.float32))


def test_encode_takes_float32_only():
    with pytest.raises(NumericError, match="float64"):
        encode(E4M3, np.ones(3))


def test_decode_refuses_a_code_with_too_many_bits():
    with pytest.raises(NumericError, match=r"0x10 at \[1, 0\]"):
        decode(E2M1, np.array([[3, 15], [16, 2]], np.uint8))
    with pytest.raises(NumericError, match="int64"):
        decode(E2M1, np.array([3]))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), axis=st.integers(-3, 2))
def test_nibbles_pack_and_unpack_along_any_axis(seed, axis):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, tuple(2 * rng.integers(1, 5, 3)), np.uint8)
    packed = pack_nibbles(codes, axis)
    assert packed.size * 2 == codes.size
    np.testing.assert_array_equal(unpack_nibbles(packed, axis), codes)
    first = np.take(codes, range(0, codes.shape[axis], 2), axis)
    np.testing.assert_array_equal(packed & 15, first)  # the even index is the low nibble


def test_packing_transposed_experts_is_the_transpose_of_packing():
    codes = np.random.default_rng(0).integers(0, 16, (3, 8, 32), np.uint8)
    np.testing.assert_array_equal(pack_nibbles(codes.swapaxes(1, 2), 1), pack_nibbles(codes).swapaxes(1, 2))


def test_odd_lengths_and_wide_codes_are_not_packed():
    with pytest.raises(NumericError, match="axis -1 has 3"):
        pack_nibbles(np.zeros((2, 3), np.uint8))
    with pytest.raises(NumericError, match=r"0x11 at \[0, 1\]"):
        pack_nibbles(np.array([[1, 17]], np.uint8))
