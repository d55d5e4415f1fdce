"""The closed form: exact where it says so, never worse than the other ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import cpu_cast, mx_to_nv, nvfp4
from quant.cast import pack_nibbles, unpack_nibbles
from quant.codes import E2M1
from quant.errors import NumericError
from quant.mx_to_nv import Source, Way, cast, cast_set
from quant.quantised import Quantised
from quant.scheme import MXFP4, NVFP4

MAGNITUDES = E2M1.values[:8].astype(np.float64)


def weights_of(source: Source) -> np.ndarray:
    """In float64: with k = 127 a code of 4 or 6 is beyond float32."""
    return meaning(Quantised(MXFP4, source.packed, source.scales))


def meaning(quantised: Quantised) -> np.ndarray:
    """The dequantised weights, rounded to float32 as everywhere, but for those beyond it."""
    step = quantised.steps().astype(np.float64).repeat(quantised.scheme.block[0], axis=-1)
    exact = E2M1.values.astype(np.float64)[quantised.codes] * step
    return np.where(np.abs(exact) <= np.finfo(np.float32).max, quantised.weights(), exact)


def make(rng: np.random.Generator, spread: int, allowed=range(8), shape=(6, 4), top: int = 130) -> Source:
    """Codes with magnitudes out of ``allowed``, exponents over ``spread`` octaves, some zero blocks and halves."""
    rows, blocks = shape
    codes = rng.choice(np.array(list(allowed), np.uint8), (rows, blocks * 32)) | (
        rng.integers(0, 2, (rows, blocks * 32)) << 3
    )
    codes = codes.astype(np.uint8)
    for half in range(0, blocks * 32, 16):
        if rng.random() < 0.2:
            codes[rng.integers(0, rows), half : half + 16] &= 8
    scales = rng.integers(max(0, top - spread), top + 1, (rows, blocks)).astype(np.uint8)
    return Source(pack_nibbles(codes), scales)


def hybrid_error(source: Source) -> float:
    """The exporter's way: k_max over bytes above 0, byte 0x01 and re-rounded codes outside the window."""
    k = source.scales.astype(int) - 127
    used = source.scales > 0
    m = (k[used].max() if used.any() else 0) - 8
    w = weights_of(source)
    step = np.repeat(np.ldexp(1.0, np.where(k - m >= -9, k, m - 9)), 32, axis=1)
    ratio = np.abs(w) / step
    order = np.searchsorted((MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2, ratio)
    order += np.isin(ratio, [0.75, 1.75, 3.5])
    return float(((np.abs(w) - MAGNITUDES[order] * step) ** 2).sum())


def plain_error(sources: list[Source]) -> float:
    top = max(np.abs(weights_of(s)).max() for s in sources)
    if top > np.finfo(np.float32).max:
        return float("inf")  # the other way does not exist
    total = 0.0
    for s in sources:
        w = weights_of(s)
        total += ((w - nvfp4.quantise(w.astype(np.float32), float(top)).weights()) ** 2).sum()
    return float(total)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.integers(0, 40),
    allowed=st.sampled_from([range(8), (0, 1, 2, 3), (0, 2, 4, 5, 6, 7), (0, 1, 2, 3, 4, 5), (0, 1), (4, 6), (7,)]),
    parts=st.integers(1, 3),
    top=st.sampled_from([40, 127, 130, 254]),
)
def test_errors_are_true_and_never_above_the_other_ways(seed, spread, allowed, parts, top):
    rng = np.random.default_rng(seed)
    sources = [make(rng, spread, allowed, top=top) for _ in range(parts)]
    made = cast_set(sources)
    for source, one in zip(sources, made, strict=True):
        err = ((weights_of(source) - meaning(one.quantised)) ** 2).reshape(*one.exact.shape, 16).sum(-1)
        np.testing.assert_array_equal(one.exact, err == 0)
        np.testing.assert_allclose(one.error, err, rtol=1e-12)  # two orders of adding sixteen float64 squares
        assert len(np.unique(made[0].quantised.global_scale)) == 1
        assert one.quantised.global_scale == made[0].quantised.global_scale
    total = sum(float(one.error.sum()) for one in made)
    assert total <= plain_error(sources) * (1 + 1e-12)
    if parts == 1:
        assert total <= hybrid_error(sources[0]) * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.integers(0, 17))
def test_within_17_octaves_every_code_is_copied(seed, spread):
    source = make(np.random.default_rng(seed), spread)
    made = cast(source)
    assert made.exact.all()
    assert made.way is Way.CLOSED_FORM
    assert made.error.sum() == 0
    np.testing.assert_array_equal(made.quantised.stored, source.packed)  # -0 stays -0
    np.testing.assert_array_equal(made.quantised.weights(), weights_of(source))


def blocks(*kinds: tuple[int, list[int]]) -> Source:
    """One row; each kind is (exponent k, magnitude codes repeated over the block)."""
    codes = np.concatenate([np.resize(np.array(c, np.uint8), 32) for _, c in kinds])
    return Source(pack_nibbles(codes[None]), np.array([[k + 127 for k, _ in kinds]], np.uint8))


def test_a_block_18_octaves_down_is_exact_when_its_codes_can_be_halved():
    made = cast(blocks((0, [7, 1]), (-18, [2, 4, 6, 7, 0, 10, 5])))
    assert made.exact.all()
    assert made.m == -8
    assert unpack_nibbles(made.quantised.stored)[0, 32:39].tolist() == [1, 2, 4, 5, 0, 9, 3]
    worse = cast(blocks((0, [7, 1]), (-18, [2, 4, 6, 7, 0, 10, 3])))  # 1.5 cannot be halved
    assert not worse.exact.all()


def test_doubling_the_top_blocks_codes_lets_the_window_sink():
    made = cast(blocks((0, [5, 1, 3]), (-18, [7, 1])))  # none above 3
    assert made.exact.all()
    assert made.m == -9
    assert unpack_nibbles(made.quantised.stored)[0, :3].tolist() == [7, 2, 5]
    assert not cast(blocks((0, [6, 1, 3]), (-18, [7, 1]))).exact.all()


def test_zero_blocks_constrain_nothing_whatever_their_byte():
    made = cast(blocks((100, [0, 8]), (-10, [7]), (-27, [1])))
    assert made.exact.all()
    assert made.m == -18
    assert (np.isfinite(made.quantised.steps())).all()
    np.testing.assert_array_equal(unpack_nibbles(made.quantised.stored)[0, :2], [0, 8])


def test_a_zero_block_far_away_does_not_make_codes_move():
    source = blocks((100, [0, 8]), (-10, [1, 2]))  # the live block could be doubled, but need not be
    made = cast(source)
    assert made.m == -18
    np.testing.assert_array_equal(made.quantised.stored, source.packed)


def test_byte_0_with_live_codes_is_not_a_zero_block():
    made = cast(blocks((-127, [7, 1]), (-120, [3])))
    assert made.exact.all()
    assert made.quantised.weights()[0, 0] == np.float32(6 * 2.0**-127)


def test_an_all_zero_tensor_has_usable_scales():
    made = cast(blocks((0, [0]), (-127, [8])))
    assert made.quantised.global_scale == 1
    assert (made.quantised.weights() == 0).all()
    assert made.exact.all()


def test_one_dominant_outlier_is_requantised_when_that_loses_less():
    rng = np.random.default_rng(4)
    source = make(rng, 0, shape=(8, 8), top=100)
    source.scales[0, 0] = 121
    source.packed[0, :16] = 0x77
    made = cast(source)
    assert made.error.sum() <= min(plain_error([source]), hybrid_error(source))


def test_255_is_refused_by_name_and_index():
    source = blocks((0, [7]), (1, [7]))
    source.scales[0, 1] = 255
    with pytest.raises(NumericError, match=r"mlp\.down: 1 of 2 E8M0 scales are 255 \(NaN\), the first at \[0, 1\]"):
        cast(Source(source.packed, source.scales, "mlp.down"))


def test_shapes_that_are_no_mxfp4_are_refused():
    for packed, scales in (((2, 16), (2, 2)), ((2, 16), (3, 1)), ((3,), (1,))):
        with pytest.raises(NumericError, match="weird"):
            cast(Source(np.zeros(packed, np.uint8), np.zeros(scales, np.uint8), "weird"))
    with pytest.raises(NumericError, match="no experts"):
        cast(blocks((0, [1])), per_expert=True)


def test_each_expert_has_its_own_window_and_a_shared_one_is_wider():
    low, high = blocks((-30, [7, 1])), blocks((0, [7, 1]))
    both = Source(np.stack([low.packed, high.packed]), np.stack([low.scales, high.scales]))
    own, shared = cast(both, per_expert=True), cast(both)
    assert own.exact.all()
    assert own.m.tolist() == [-38, -8]
    assert own.quantised.global_scale is not None
    assert own.quantised.global_scale.shape == (2,)
    np.testing.assert_array_equal(own.quantised.weights(), weights_of(both))
    assert not shared.exact.all()


def test_a_fused_set_shares_its_scale():
    gate, up = blocks((0, [7])), blocks((-15, [7, 1]))
    a, b = cast_set([gate, up])
    assert a.quantised.global_scale == b.quantised.global_scale == np.float32(2.0**-8)
    assert cast(up).quantised.global_scale == np.float32(2.0**-23)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_fast_least_squares_is_the_definition_and_twelve_scales_suffice(seed):
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 256, (40, 8), np.uint8)
    block[rng.random(40) < 0.2] &= 0x9B
    e = rng.integers(-16, -9, 40).astype(np.int16)
    slow, fast = mx_to_nv.least_squares(block, e), cpu_cast.least_squares(block, e, 12)
    for a, b in zip(slow, fast, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(slow, mx_to_nv.least_squares(block, e, 126), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_block_is_worse_than_one_rounded_under_any_scale():
    """Brute force over all 126 scales and all codes for one block outside the window."""
    source = blocks((0, [7, 1]), (-19, [1, 2, 3, 5, 7]))
    made = cast(source)
    if made.way is Way.CLOSED_FORM:
        w = np.abs(weights_of(source))[0, 32:48]
        ws2 = float(made.quantised.global_scale)
        grid = NVFP4.scale.values[1:127].astype(np.float64)[:, None] * ws2 * MAGNITUDES  # type: ignore[union-attr]
        best = min(((w[:, None] - row[None]) ** 2).min(1).sum() for row in grid)
        assert made.error[0, 2] == pytest.approx(best, rel=1e-12)
    assert isinstance(made.quantised, Quantised)
