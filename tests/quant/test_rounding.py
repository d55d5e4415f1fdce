"""The Numba paths against the numpy definitions, on values where they could differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import blocks, rounding
from quant.backend import Backend
from quant.cast import encode, unpack_nibbles
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Word, widen
from quant.rounding import Rule
from tests.quant import draws

REFERENCE = Backend.REFERENCE
rules = st.sampled_from(list(Rule))


def steps_of(w: np.ndarray, block: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    amax = blocks.amax(widen(w), (block,))
    step = np.minimum(amax, np.float32(1e37)) * rng.choice(
        np.array([0, 1 / 6, 1 / 8, 0.25, 1, 4], np.float32), amax.shape
    )
    return np.where(rng.random(amax.shape) < 0.3, np.ldexp(np.float32(1), rng.integers(-149, 127)), step).astype(
        np.float32
    )


@settings(max_examples=120, deadline=None)
@given(
    w=draws.blocks(rows=5, columns=96),
    word=draws.words,
    rule=rules,
    block=st.sampled_from([16, 32]),
    seed=st.integers(0, 99),
)
def test_pack_is_the_definition(w, word, rule, block, seed):
    x = draws.stored_as(w, word)
    step = steps_of(x, block, seed)
    np.testing.assert_array_equal(
        rounding.pack_fp4(x, step, block, rule), rounding.pack_fp4(x, step, block, rule, REFERENCE)
    )
    np.testing.assert_array_equal(rounding.block_amax(x, block), rounding.block_amax(x, block, REFERENCE))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=2),
    columns=st.integers(0, 100),
    block=st.one_of(st.integers(-1, 70), st.sampled_from([16, 32, 48, 64])),
    seed=st.integers(0, 99),
)
def test_every_shape_and_block_is_packed_alike_or_refused(shape, columns, block, seed):
    """Blocks that are no multiple of sixteen, ragged and empty weights: both sides give the same, or both refuse."""
    if seed % 2:
        columns = columns * abs(block)
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((*shape, columns)).astype(np.float32)
    step = np.abs(rng.standard_normal((*shape, columns // max(block, 1)))).astype(np.float32)
    made = []
    for backend in Backend:
        try:
            made.append(rounding.pack_fp4(w, step, block, backend=backend).tolist())
        except NumericError as error:
            made.append(str(error))
    assert made[0] == made[1]
    assert isinstance(made[0], list) is (block > 0 and block % 16 == 0 and columns > 0 and columns % block == 0)


@settings(max_examples=60, deadline=None)
@given(w=draws.blocks(rows=4, columns=64), word=draws.words, seed=st.integers(0, 99))
def test_block_losses_are_the_definition(w, word, seed):
    x = draws.stored_as(w, word)
    step = np.maximum(steps_of(x, 16, seed), np.float32(2.0**-149))
    fast, slow = rounding.block_losses(x, step, 16), rounding.block_losses(x, step, 16, REFERENCE)
    assert fast.tobytes() == slow.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    word=draws.words,
    quotient=draws.words,
    block=st.sampled_from([(0, 0), (0,), (128, 128), (32,), (3, 7)]),
)
def test_fp8_is_the_definition(seed, word, quotient, block):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 140)), int(rng.integers(1, 5)) * 32)
    x = rng.standard_normal(shape).astype(np.float32)
    x[:, :16] = rng.choice(draws.neighbours(E4M3.values[:127]), (shape[0], 16))
    x = draws.stored_as(x, word)
    step = blocks.amax(widen(x), block) / np.float32(rng.choice([448, 1, 100, 500]))
    step = np.where(rng.random(step.shape) < 0.2, np.float32(rng.choice([0.0, 1.0])), step)
    np.testing.assert_array_equal(
        rounding.encode_fp8(x, step, block, quotient), rounding.encode_fp8(x, step, block, quotient, REFERENCE)
    )


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_scale_codes_are_the_definition(seed):
    rng = np.random.default_rng(seed)
    table = E4M3.values[:127]
    middle = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    x = np.abs(np.concatenate([draws.neighbours(table), draws.neighbours(middle), draws.finite_bits(rng, (300,))]))
    np.testing.assert_array_equal(rounding.encode_scales(x), encode(E4M3, x).codes)


def test_rules_differ_exactly_at_ties_and_zeros():
    ratios = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 0.0, -0.0, -0.1, -0.75, 7, -7, 6, 1, 2], np.float32)
    step = np.ones((1, 1), np.float32)
    made = {rule: unpack_nibbles(rounding.pack_fp4(ratios[None], step, 16, rule))[0].tolist() for rule in Rule}
    even = [0, 2, 2, 4, 4, 6, 6]
    assert made[Rule.NEGATIVE] == [*even, 0, 0, 8, 10, 7, 15, 7, 2, 4]
    assert made[Rule.SIGN_BIT] == [*even, 0, 8, 8, 10, 7, 15, 7, 2, 4]
    assert made[Rule.TIES_DOWN] == [0, 1, 2, 3, 4, 5, 6, 8, 8, 8, 9, 7, 15, 7, 2, 4]


@pytest.mark.parametrize("rule", list(Rule))
def test_thresholds_one_float32_step_to_either_side(rule):
    middle = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
    x = draws.neighbours(middle)
    x = np.concatenate([x, np.zeros(-x.size % 16, np.float32)])[None]
    step = np.ones((1, x.shape[1] // 16), np.float32)
    magnitude = unpack_nibbles(rounding.pack_fp4(x, step, 16, rule))[0] & 7
    table = np.abs(E2M1.values[:8].astype(np.float64))
    for value, code in zip(np.abs(x[0].astype(np.float64)), magnitude, strict=True):
        distance = np.abs(table - value)
        best = np.flatnonzero(distance == distance.min())
        wanted = best[0] if rule is Rule.TIES_DOWN else next(c for c in best if len(best) == 1 or c % 2 == 0)
        assert code == wanted, value


@pytest.mark.parametrize("word", list(Word))
def test_views_that_are_not_contiguous_are_read_right(word):
    x = draws.stored_as(np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32), word)
    for view in (x.T, x[::2], x[:, ::3]):
        amax = rounding.block_amax(view, 16)
        np.testing.assert_array_equal(amax, blocks.amax(widen(view), (16,)))
        step = amax / np.float32(6)
        np.testing.assert_array_equal(
            rounding.pack_fp4(view, step, 16),
            rounding.pack_fp4(np.ascontiguousarray(view), step, 16, backend=REFERENCE),
        )
