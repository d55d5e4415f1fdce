"""MXFP4, MXFP8 and FP8 from weights."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import fp8, mx
from quant.backend import Backend
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Word, widen
from quant.mx import ScaleRule
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, MXFP4, MXFP8
from tests.quant import draws

mx_schemes = pytest.mark.parametrize("scheme", [MXFP4, MXFP8], ids=lambda s: s.element.name)
fp8_schemes = pytest.mark.parametrize("scheme", [FP8_TENSOR, FP8_CHANNEL, FP8_BLOCK], ids=lambda s: str(s.block))


def log2_floor(x: Fraction) -> int:
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def by_fractions(amax: float, element, rule: ScaleRule) -> int:  # type: ignore[no-untyped-def]
    """The exponent by exact arithmetic, clamped to the codes 0 … 254."""
    x = Fraction(amax)
    emax = log2_floor(Fraction(element.max))
    if rule is ScaleRule.CEIL:
        q = Fraction(float(np.float32(amax) / np.float32(element.max)))
        e = -127 if q == 0 else log2_floor(q)
        e += q > Fraction(2) ** e if q else 0
    else:
        kept = {ScaleRule.FLOOR: None, ScaleRule.NEAREST: 1, ScaleRule.EVEN: element.mbits}[rule]
        e = log2_floor(x)
        if kept is not None and x >= Fraction(2) ** e * (2 - Fraction(1, 2 ** (kept + 1))):
            e += 1
        e -= emax
    return min(max(e + 127, 0), 254)


@mx_schemes
@pytest.mark.parametrize("rule", list(ScaleRule))
def test_exponents_are_exact_around_every_decision(scheme, rule):
    edges = [scheme.element.max, 1.0, 1.5, 1.75, 1.9375, 1.875]
    powers = np.ldexp(np.float32(1), np.arange(-110, 120, 7))
    x = np.concatenate([np.float32(edge) * powers for edge in edges]).astype(np.float32)
    near = x if rule is ScaleRule.CEIL else np.unique(np.abs(draws.neighbours(x)))  # log2 in float32 is blind there
    codes = mx.scale_codes(near, scheme.element, rule)
    assert codes.tolist() == [by_fractions(float(a), scheme.element, rule) for a in near]


def test_ceil_takes_log2_in_float32_as_the_exporter_does():
    above = np.nextafter(np.float32(6 * 2.0**40), np.float32(np.inf))
    assert mx.scale_codes(np.array([above]), E2M1, ScaleRule.CEIL)[0] == 127 + 40


@mx_schemes
def test_zero_and_extremes(scheme):
    amax = np.array([0, 2.0**-149, 2.0**-127, 3.4e38], np.float32)
    for rule in ScaleRule:
        codes = mx.scale_codes(amax, scheme.element, rule)
        assert codes[:3].tolist() == [0, 0, 0]
        assert codes[3] < 255
    for bad in (-1.0, np.inf, np.nan):
        with pytest.raises(NumericError):
            mx.scale_codes(np.array([bad], np.float32), scheme.element, ScaleRule.FLOOR)


@settings(max_examples=60, deadline=None)
@given(w=draws.blocks(rows=3, columns=64), word=draws.words, rule=st.sampled_from(list(ScaleRule)))
def test_mx_of_any_finite_weight(w, word, rule):
    x = draws.stored_as(w, word)
    for scheme in (MXFP4, MXFP8):
        made = mx.quantise(x, scheme, rule)
        slow = mx.quantise(x, scheme, rule, backend=Backend.REFERENCE)
        np.testing.assert_array_equal(made.stored, slow.stored)
        np.testing.assert_array_equal(made.scales, slow.scales)
        assert np.isfinite(made.steps()).all()
        assert (made.codes[widen(x) == 0] & (7 if scheme is MXFP4 else 127) == 0).all()
        if rule is ScaleRule.CEIL:  # nothing saturates, so no error is above half the widest gap of the block's codes
            gap = (1.0 if scheme is MXFP4 else 16.0) * made.steps().astype(np.float64).repeat(32, axis=1)
            held = np.abs(widen(x)) < 3 * 2.0**126  # beyond, the nearest value may be 2^128, which float32 has not
            assert (np.abs(made.weights().astype(np.float64) - widen(x)) <= gap * 1.001)[held].all()


@mx_schemes
def test_mx_refusals(scheme):
    with pytest.raises(NumericError, match="K = 48"):
        mx.quantise(np.ones((2, 48), np.float32), scheme)
    with pytest.raises(NumericError, match=r"\[1, 3\]: inf"):
        mx.quantise(np.where(np.arange(64).reshape(2, 32) == 35, np.float32(np.inf), np.float32(1)), scheme)
    with pytest.raises(NumericError, match=r"255 \(NaN\), the first at \[0, 0\]"):
        mx.with_scales(np.ones((1, 32), np.float32), np.array([[255]], np.uint8), scheme)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), word=draws.words)
def test_fp8_with_partial_edges(seed, word):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 300, 2))
    x = draws.stored_as(rng.standard_normal(shape).astype(np.float32), word)
    for scheme in (FP8_TENSOR, FP8_CHANNEL, FP8_BLOCK):
        made = fp8.quantise(x, scheme)
        slow = fp8.quantise(x, scheme, backend=Backend.REFERENCE)
        np.testing.assert_array_equal(made.stored, slow.stored)
        np.testing.assert_array_equal(made.scales, slow.scales)
        err = np.abs(made.weights().astype(np.float64) - widen(x))
        assert (err <= np.abs(widen(x)) / 16 * 1.0001 + made.steps().max() * 2.0**-9).all()
        assert ((made.stored & 0x7F) < 0x7F).all()
    assert fp8.quantise(x, FP8_BLOCK).scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))


def test_fp8_scales_by_hand():
    w = np.zeros((130, 200), np.float32)
    w[0, 0], w[129, 199], w[5, 150] = 448, -3.5, 0.875
    block = fp8.quantise(w, FP8_BLOCK)
    assert block.scales.tolist() == [[1.0, 0.875 / 448], [1.0, 3.5 / 448]]  # [1, 0] is a zero block: 1
    assert block.stored[0, 0] == 0x7E
    assert block.stored[129, 199] == 0xFE
    assert fp8.quantise(w, FP8_CHANNEL).scales[[0, 5, 7, 129], 0].tolist() == [1, 0.875 / 448, 1, 3.5 / 448]
    assert fp8.quantise(w, FP8_TENSOR).scales.tolist() == [[1.0]]


@fp8_schemes
def test_an_all_zero_weight_is_zero_bytes_under_scale_one(scheme):
    """The exporter gives NaN bytes under scale 0."""
    made = fp8.quantise(np.zeros((3, 5), np.float32), scheme)
    assert (made.scales == 1).all()
    assert (made.stored == 0).all()


@fp8_schemes
def test_what_is_above_the_scale_is_clamped_never_nan(scheme):
    w = np.full((4, 4), 1000, np.float32)
    made = fp8.quantise(w, scheme, amax=np.full(fp8.quantise(w, scheme).scales.shape, 448, np.float32))
    assert (made.stored == 0x7E).all()
    assert (made.weights() == 448).all()


@fp8_schemes
def test_fp8_refusals(scheme):
    w = np.ones((2, 3), np.float32)
    scales = fp8.quantise(w, scheme).scales
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(NumericError):
            fp8.with_scales(w, np.full_like(scales, bad), scheme)
    w.view(np.uint32)[1, 1] = 0xFFC00000
    with pytest.raises(NumericError, match=r"\[1, 1\]: nan"):
        fp8.quantise(w, scheme)
    with pytest.raises(NumericError, match="do not fit"):
        fp8.with_scales(np.ones((200, 300), np.float32), np.ones((7, 7), np.float32), scheme)


def test_dividing_in_bfloat16_is_not_dividing_in_float32():
    w = np.array([[448.0, 0.984375]], np.float32)
    scale = np.array([[np.float32(1.0009766)]])
    wide = fp8.with_scales(w, scale, FP8_TENSOR)
    narrow = fp8.with_scales(w, scale, FP8_TENSOR, Word.BFLOAT16)
    assert E4M3.values[wide.stored[0, 1]] != E4M3.values[narrow.stored[0, 1]] or (wide.stored == narrow.stored).all()
    ratio = np.float32(w[0, 1] / scale[0, 0])
    assert E4M3.values[wide.stored[0, 1]] == min(E4M3.values[:127], key=lambda v: abs(float(v) - float(ratio)))


def test_three_dimensional_weights():
    w = np.random.default_rng(0).standard_normal((3, 40, 64)).astype(np.float32)
    for scheme in (FP8_TENSOR, FP8_CHANNEL, FP8_BLOCK):
        made = fp8.quantise(w, scheme)
        for e in range(3):
            one = fp8.quantise(w[e], scheme)
            np.testing.assert_array_equal(made.stored[e], one.stored)
            np.testing.assert_array_equal(made.scales[e], one.scales)
