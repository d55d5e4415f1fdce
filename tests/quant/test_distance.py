"""Two dequantised weights against each other: the kernel, the definition, and an oracle in float64."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import fp8, mx, nvfp4
from quant.backend import Backend
from quant.distance import ROUNDING, Distance, Operand, distance, identical
from quant.errors import NumericError
from quant.floats import narrow_bf16, widen
from quant.quantised import Quantised
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, MXFP4, MXFP8, NVFP4, NVFP4_BLOCK32, NVFP4_DIVIDE

SCHEMES = {
    "nvfp4": NVFP4, "divide": NVFP4_DIVIDE, "block32": NVFP4_BLOCK32, "mxfp4": MXFP4, "mxfp8": MXFP8,
    "tensor": FP8_TENSOR, "channel": FP8_CHANNEL, "block": FP8_BLOCK,
}  # fmt: skip
KINDS = ("bf16", "f16", "f32", *SCHEMES)


def held(kind: str, w: np.ndarray):
    """``w`` as a kind of operand holds it."""
    if kind == "bf16":
        return narrow_bf16(w)
    if kind == "f16":
        return w.astype(np.float16)
    if kind == "f32":
        return w
    scheme = SCHEMES[kind]
    if kind in ("mxfp4", "mxfp8"):
        return mx.quantise(w, scheme)
    if kind in ("tensor", "channel", "block"):
        return fp8.quantise(w, scheme)
    return nvfp4.quantise(w, scheme=scheme)


def noise(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def close(one: Distance, other: Distance) -> None:
    """Equal, the sums but for their last bits; which of two nearly equal blocks comes first is open."""
    assert replace(one, sums=other.sums, worst=()) == replace(other, worst=())
    np.testing.assert_allclose(astuple(one.sums), astuple(other.sums), rtol=1e-12)
    np.testing.assert_allclose([s.error for s in one.worst], [s.error for s in other.worst], rtol=1e-12)
    if [s[1:3] for s in one.worst] == [s[1:3] for s in other.worst]:
        assert [s.step for s in one.worst] == [s.step for s in other.worst]


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    rows=st.integers(1, 7),
    columns=st.sampled_from([32, 96, 2048, 2080]),
    block=st.sampled_from([(1, 16), (1, 32), (1, 0), (2, 128), (4, 16), (128, 128), (3, 48)]),
    starts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    steps=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    gained=st.booleans(),
    near=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_is_the_definition(kinds, rows, columns, block, starts, steps, gained, near, seed):
    whole = noise(seed, 20, columns)
    other = whole if near else noise(seed + 1, 20, columns)
    ranges = [range(first, first + rows * step, step) for first, step in zip(starts, steps, strict=True)]
    gain = np.linspace(0.5, 2, columns, dtype=np.float32) if gained else None
    a, b = Operand(held(kinds[0], whole), ranges[0]), Operand(held(kinds[1], other), ranges[1], gain)
    block = (block[0], block[1] or columns)
    close(distance(a, b, block, 4), distance(a, b, block, 4, Backend.REFERENCE))


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_dequantised_ones(kind):
    """Σ(w - v)² against weights made by the other path, in float64."""
    w = noise(3, 130, 256)
    stored = held(kind, w)
    v = (stored.weights() if isinstance(stored, Quantised) else widen(stored)).astype(np.float64)
    found = distance(Operand(w, range(130)), Operand(stored, range(130)), (1, 16))
    d = w.astype(np.float64) - v
    assert found.sums.squared == pytest.approx(float((d * d).sum()), rel=1e-12)
    assert found.sums.largest == np.abs(d).max()
    assert found.sums.source == pytest.approx(float((w.astype(np.float64) ** 2).sum()), rel=1e-12)
    assert found.sums.product == pytest.approx(float((w.astype(np.float64) * v).sum()), rel=1e-12)
    per_block = (d * d).reshape(130, 16, 16).sum(-1)
    assert (found.blocks, found.exact) == (per_block.size, int((per_block == 0).sum()))


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("kind", KINDS)
def test_equal_sides_are_exact(kind, backend):
    stored = held(kind, noise(1, 9, 96))
    found = distance(Operand(stored, range(9)), Operand(stored, range(9)), (1, 32), 5, backend)
    assert (found.blocks, found.exact, found.rounding, found.worst) == (27, 27, 0, ())
    assert found.sums.squared == found.sums.largest == 0
    assert found.sums.source == found.sums.result == found.sums.product


@pytest.mark.parametrize("backend", list(Backend))
def test_signs_of_zero_are_equal(backend):
    a, b = np.zeros((2, 32), np.float32), np.full((2, 32), -0.0, np.float32)
    assert distance(Operand(a, range(2)), Operand(b, range(2)), (1, 16), 1, backend).exact == 4
    assert not identical(a, b)


@pytest.mark.parametrize("backend", list(Backend))
def test_mul_and_div_differ_by_rounding_alone(backend):
    """The two conventions of NVFP4 hold the same codes; their float32 products are not the same everywhere."""
    q = nvfp4.quantise(noise(5, 16, 512))
    turned = Quantised(NVFP4_DIVIDE, q.stored, q.scales, np.float32(1) / np.asarray(q.global_scale, np.float32))
    found = distance(Operand(q, range(16)), Operand(turned, range(16)), (1, 16), 1, backend)
    assert 0 < found.rounding <= found.blocks
    assert found.exact + found.rounding == found.blocks
    assert found.sums.sqnr > 130


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("block", [(1, 16), (2, 16), (1, 48)])
def test_what_is_not_finite(backend, block):
    a, b = noise(1, 2, 48), noise(2, 2, 48)
    a[0, 3] = b[0, 3] = np.nan
    a[0, 20] = b[0, 20] = np.inf
    both = distance(Operand(a, range(2)), Operand(b, range(2)), block, 9, backend)
    assert (both.incomparable, both.broken) == (2, 0)
    assert math.isfinite(both.sums.squared)
    assert both.sums.count == 94
    b[1, 17] = np.nan
    one = distance(Operand(a, range(2)), Operand(b, range(2)), block, 9, backend)
    assert (one.incomparable, one.broken) == (2, 1)
    assert math.isnan(one.sums.squared)
    assert math.isnan(one.sums.mse)
    assert math.isnan(one.sums.sqnr)
    assert one.worst[0].error == math.inf
    assert one.worst[0][1:3] == (1 // block[0] * block[0], 17 // block[1] * block[1])
    b[1, 17] = np.inf
    one = distance(Operand(a, range(2)), Operand(b, range(2)), block, 9, backend)
    assert one.sums.mse == math.inf
    assert one.sums.sqnr == -math.inf
    a[0, 20] = -np.inf
    assert distance(Operand(a, range(2)), Operand(b, range(2)), block, 9, backend).broken == 2


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("block", [(1, 16), (2, 32)])
def test_a_block_with_nothing_to_compare_is_not_exact(backend, block):
    a = noise(1, 2, 64)
    a[0, 0] = np.nan
    found = distance(Operand(a, range(2)), Operand(a, range(2)), block, 9, backend)
    assert found.exact == found.blocks - 1
    assert found.worst == ()


@pytest.mark.parametrize("backend", list(Backend))
def test_worst_blocks_in_order(backend):
    a, b = np.zeros((3, 64), np.float32), np.zeros((3, 64), np.float32)
    b[2, 5], b[0, 33], b[1, 0], b[1, 63] = 3, 2, 1, 1
    found = distance(Operand(a, range(3)), Operand(b, range(3)), (1, 16), 3, backend)
    assert [s[:3] for s in found.worst] == [(9, 2, 0), (4, 0, 32), (1, 1, 0)]
    found = distance(Operand(a, range(3)), Operand(b, range(3)), (2, 32), 3, backend)
    assert [s[:3] for s in found.worst] == [(9, 2, 0), (5, 0, 32), (1, 0, 0)]


def test_rounding_has_an_edge():
    b = np.ones((1, 16), np.float32)
    a = b.copy()
    a[0, 0] += np.float32(2.0**-20)  # squared: 2^-40 = 16 * 2^-44
    assert ROUNDING * 16 == 2.0**-40
    for backend in Backend:
        assert distance(Operand(a, range(1)), Operand(b, range(1)), (1, 16), 0, backend).rounding == 1
    a[0, 1] += np.float32(2.0**-23)
    for backend in Backend:
        assert distance(Operand(a, range(1)), Operand(b, range(1)), (1, 16), 0, backend).rounding == 0


def test_sums_add():
    a, b = noise(1, 6, 64), noise(2, 6, 64)
    whole = distance(Operand(a, range(6)), Operand(b, range(6)), (1, 16))
    parts = [distance(Operand(a, rows), Operand(b, rows), (1, 16)) for rows in (range(0, 6, 2), range(1, 6, 2))]
    close(parts[0] + parts[1], whole)
    b[5, 5] = np.nan
    parts = [distance(Operand(a, rows), Operand(b, rows), (1, 16)) for rows in (range(5), range(5, 6))]
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        assert math.isnan(total.sums.largest)
        assert math.isnan(total.sums.squared)


def test_empty_and_misfitting():
    none = Operand(np.zeros((0, 16), np.float32), range(0))
    assert distance(none, none, (1, 16)) == Distance()
    with pytest.raises(NumericError, match="shapes"):
        distance(none, Operand(np.zeros((1, 16), np.float32), range(1)), (1, 16))


def test_odd_blocks():
    a, b = noise(1, 5, 100), noise(2, 5, 100)
    for block in ((1, 7), (3, 7), (1, 100), (5, 30)):
        one, other = Operand(narrow_bf16(a), range(5)), Operand(b, range(5))
        close(distance(one, other, block, 3), distance(one, other, block, 3, Backend.REFERENCE))
    packed = Operand(held("nvfp4", noise(1, 5, 96)), range(5))
    with pytest.raises(NumericError, match="7 columns"):
        distance(packed, packed, (1, 7))


def test_identical():
    w = noise(1, 4, 33)
    for kind in ("bf16", "f16", "f32"):
        stored = held(kind, w)
        assert identical(stored, stored.copy())
        other = stored.copy()
        other.reshape(-1).view(np.uint8)[-1] ^= 1
        assert not identical(stored, other)
    assert not identical(w, held("f16", w))
    assert not identical(w, w[:3])
    w[3, 32] = np.nan
    assert not identical(w, w)
    assert identical(w[:0], w[:0])


def turned(kind: str, w: np.ndarray):
    """``w`` [N, K] as an operand holds it that lies across."""
    stored = held(kind, w)
    if not isinstance(stored, Quantised):
        return np.ascontiguousarray(stored.T)
    return replace(stored, stored=np.ascontiguousarray(stored.stored.T), scales=np.ascontiguousarray(stored.scales.T))


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.tuples(*[st.sampled_from(["bf16", "f16", "f32", "nvfp4", "divide", "mxfp4"])] * 2),
    rows=st.sampled_from([16, 32, 176]),
    columns=st.sampled_from([32, 96, 256]),
    width=st.sampled_from([16, 32]),
    starts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    gained=st.booleans(),
    near=st.booleans(),
    bad=st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), max_size=2),
    seed=st.integers(0, 99),
)
def test_across_is_the_definition(kinds, rows, columns, width, starts, gained, near, bad, seed):
    whole = noise(seed, 180, columns)
    other = whole if near else noise(seed + 1, 180, columns)
    sides = [turned(kind, w) for kind, w in zip(kinds, (whole, other), strict=True)]
    for at, value in enumerate(bad):
        for side in sides[: at + 1]:
            if not isinstance(side, Quantised) and side.dtype.kind == "f":
                side[7 * at, 5 + at] = value
    ranges = [range(first, first + rows) for first in starts]
    gain = np.linspace(0.5, 2, columns, dtype=np.float32) if gained else None
    a, b = Operand(sides[0], ranges[0], None, True), Operand(sides[1], ranges[1], gain, True)
    one, two = distance(a, b, (1, width), 4), distance(a, b, (1, width), 4, Backend.REFERENCE)
    close(one, two)
    if not bad:
        flat = [Operand(held(kind, w), part) for kind, w, part in zip(kinds, (whole, other), ranges, strict=True)]
        close(one, distance(flat[0], replace(flat[1], gain=gain), (1, width), 4))


def test_what_is_not_compared_across():
    across = Operand(noise(1, 32, 32), range(32), None, True)
    plain = Operand(noise(1, 32, 32), range(32))
    with pytest.raises(NumericError, match="only one lies across"):
        distance(across, plain, (1, 16))
    for block in ((2, 16), (1, 64), (1, 8)):
        with pytest.raises(NumericError, match="not compared across"):
            distance(across, across, block)
    for rows in (range(15), range(0, 32, 2)):
        with pytest.raises(NumericError, match="not compared across"):
            distance(replace(across, rows=rows), replace(across, rows=rows), (1, 16))
    eight = Operand(turned("mxfp8", noise(1, 32, 32)), range(32), None, True)
    with pytest.raises(NumericError, match="not packed"):
        distance(eight, eight, (1, 32))


@pytest.mark.parametrize("columns", [256, 257])
def test_every_byte_of_e4m3(columns):
    """The kernel decodes them without a table where it can."""
    codes = np.resize(np.arange(256, dtype=np.uint8), (3, columns))
    stored = Quantised(FP8_TENSOR, codes, np.full((1, 1), 0.75, np.float32))
    w = np.nan_to_num(stored.weights())
    for a, b in ((stored, stored), (w, stored), (stored, w)):
        close(*(distance(Operand(a, range(3)), Operand(b, range(3)), (1, 16), 4, k) for k in Backend))
    same = distance(Operand(stored, range(3)), Operand(stored.weights(), range(3)), (1, 16))
    assert same.sums.squared == same.broken == 0
    assert same.incomparable == int(np.count_nonzero((codes & 0x7F) == 0x7F))
