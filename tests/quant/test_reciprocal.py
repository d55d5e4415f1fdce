"""Multipliers as divisors: what is said of the weights is what exact fractions say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.reciprocal import agreement, inverts, reciprocal, scale_counts

F32 = np.float32
usual = st.floats(2.0**-40, 2.0**40, width=32).map(F32)


def ulp(x: F32) -> Fraction:
    return Fraction(float(np.spacing(x)))


@given(st.floats(2.0**-125, 2.0**125, width=32).map(F32))
def test_nearest(g):
    d = reciprocal(g)
    assert d.dtype == np.float32
    true = 1 / Fraction(float(g))
    off = abs(Fraction(float(d)) - true)
    for other in (np.nextafter(d, F32(0)), np.nextafter(d, F32(np.inf))):
        assert off < abs(Fraction(float(other)) - true)  # 1/g is never half-way: g would need 25 bits


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 2.0**-129, 2.0**127, 3.4e38])
def test_none(bad):
    with pytest.raises(NumericError, match="no reciprocal"):
        reciprocal(F32(bad))


@given(usual, st.integers(-2, 2))
def test_every_scale_and_code_by_itself(g, off):
    d = reciprocal(g)
    for _ in range(abs(off)):
        d = np.nextafter(d, F32(np.inf if off > 0 else 0))
    found = agreement(g, d)
    assert (len(found.ulps), found.ulps[127], found.deviation[127], found.ulps[0]) == (128, 0, 0.0, 0)
    for scale in range(1, 127):
        v = F32(E4M3.values[scale])
        pairs = [(F32(E2M1.values[c]) * (v * g), F32(E2M1.values[c]) * (v / d)) for c in range(1, 8)]
        ulps = max(round(abs(Fraction(float(a)) - Fraction(float(b))) / min(ulp(a), ulp(b))) for a, b in pairs)
        apart = max(abs(Fraction(float(a)) - Fraction(float(b))) / Fraction(float(a)) for a, b in pairs)
        assert (found.ulps[scale] == 0) == all(a == b for a, b in pairs)
        assert found.ulps[scale] <= ulps  # across a power of two the steps are of two sizes
        assert found.deviation[scale] == pytest.approx(float(apart), rel=1e-12)  # its own division rounds
    if off == 0:
        assert found.ulps.max() <= 2
        assert found.deviation.max() <= 2.67 * 2**-24


@given(st.integers(-60, 60))
def test_powers_of_two_change_nothing(top):
    g = F32(2.0**top)
    assert not agreement(g, reciprocal(g)).ulps.any()
    assert inverts(g, reciprocal(g))


@given(usual)
def test_scale_one_agrees_exactly_when_the_reciprocal_leads_back(g):
    d = reciprocal(g)
    one = agreement(g, d).ulps[0x38]
    assert inverts(g, d) == (F32(1) / d == g) == (one == 0)


def test_counts_and_what_they_sum_to():
    g = F32(1.7)
    scales = np.array([[0x38, 0xB8, 0x7F, 0], [0x39, 0x39, 0xFF, 0x80]], np.uint8)
    counts = scale_counts(scales)
    assert {int(code): int(n) for code, n in enumerate(counts) if n} == {0: 2, 0x38: 2, 0x39: 2, 0x7F: 2}
    found = agreement(g, reciprocal(g))
    exact, ulps, deviation = found.over(counts)
    assert exact == 4 + 2 * (found.ulps[0x38] == 0) + 2 * (found.ulps[0x39] == 0)
    assert ulps == max(found.ulps[0x38], found.ulps[0x39])
    assert deviation == max(found.deviation[0x38], found.deviation[0x39])
    assert found.over(np.zeros(128, np.int64)) == (0, 0, 0.0)


def test_overflow_of_both_is_equal():
    assert agreement(F32(3e38), F32(1 / 3e38)).ulps[0x7E] == 0


@pytest.mark.slow
def test_all_significands():
    """The figures of the module's docstring."""
    m, codes = (np.arange(8, 16) / 8).astype(F32)[:, None], np.array([0.5, 1, 1.5, 2, 3, 4, 6], F32)[:, None, None]
    back = exact = 0
    better, ulps, deviation = [], 0, 0.0
    for first in range(0, 1 << 23, 1 << 19):
        g = (np.arange(first, first + (1 << 19), dtype=np.int32) | 0x3F800000).view(F32)
        d = F32(1) / g
        same = (m * g == m / d).all(0)
        back, exact = back + int((F32(1) / d == g).sum()), exact + int(same.sum())
        for off in (-2, -1, 1, 2):
            near = (d.view(np.int32) + off).view(F32)
            better += [float(x).hex() for x in g[~same & (m * g == m / near).all(0)]]
        a, b = codes * (m * g), codes * (m / d)
        ulps = max(ulps, int(np.abs(a.view(np.int32) - b.view(np.int32)).max()))
        deviation = max(deviation, float((np.abs(a.astype(np.float64) - b) / a).max()))
    assert (back, exact, better, ulps) == (6949350, 1541389, ["0x1.1118b00000000p+0"], 2)
    assert deviation < 2.67 * 2**-24
