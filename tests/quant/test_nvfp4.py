"""NVFP4 from weights: what the exporters do wrong, shared scales, refusals, dequantisation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings

from quant import metrics, nvfp4
from quant.backend import Backend
from quant.cast import unpack_nibbles
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Word, widen
from quant.nvfp4 import Method, quantise, with_scales
from quant.scheme import NVFP4, NVFP4_BLOCK32, NVFP4_DIVIDE, GlobalScale, Scheme
from tests.quant import draws, legacy
from tests.quant.legacy import Generation

SCHEMES = [NVFP4, NVFP4_DIVIDE, NVFP4_BLOCK32]


def methods(scheme: Scheme) -> list[Method]:
    return list(Method) if scheme is NVFP4 else [Method.DYNAMIC]


EVERY = [(scheme, method) for scheme in SCHEMES for method in methods(scheme)]
every = pytest.mark.parametrize(("scheme", "method"), EVERY, ids=lambda x: str(getattr(x, "global_scale", x)))


def gaussian(shape: tuple[int, ...] = (8, 64), seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


@every
def test_an_all_zero_tensor_gets_finite_scales_and_zero_codes(scheme, method):
    """The exporter gives weight_scale_2 = 0, scales 0xFF and codes 0x77."""
    for zero in (np.zeros((4, 64), np.float32), np.full((4, 64), -0.0, np.float32)):
        made = quantise(zero, scheme=scheme, method=method)
        assert made.global_scale == 1
        assert np.isfinite(made.steps()).all()
        assert (made.stored == 0).all()
        assert made.weights().tobytes() == np.zeros((4, 64), np.float32).tobytes()


@every
def test_zero_blocks_and_zero_experts_stay_zero(scheme, method):
    w = gaussian((3, 4, 64))
    w[1] = 0
    w[2, 1, 32:] = 0
    made = quantise(w, scheme=scheme, method=method, per_expert=True)
    assert made.global_scale is not None
    assert made.global_scale.shape == (3,)
    assert np.isfinite(made.steps()).all()
    assert (made.weights()[1] == 0).all()
    assert (made.weights()[2, 1, 32:] == 0).all()
    alone = quantise(w[0], scheme=scheme, method=method)
    np.testing.assert_array_equal(made.stored[0], alone.stored)
    np.testing.assert_array_equal(made.scales[0], alone.scales)


def test_the_byte_of_a_zero_block_is_the_exporters():
    w = gaussian()
    w[0, :16] = 0
    byte = {method: int(quantise(w, method=method).scales[0, 0]) for method in Method}
    assert byte == {Method.DYNAMIC: 0x38, Method.STATIC: 0x7E, Method.SWEEP: 0x01, Method.FOUR_OVER_SIX: 0x7E}
    assert quantise(w, scheme=NVFP4_DIVIDE).scales[0, 0] == 0x20


@settings(max_examples=80, deadline=None)
@given(w=draws.blocks(rows=4, columns=64), word=draws.words)
def test_scales_are_finite_and_codes_nearest_for_any_finite_weight(w, word):
    x = draws.stored_as(w, word)
    for scheme, method in EVERY:
        made = quantise(x, scheme=scheme, method=method)
        slow = quantise(x, scheme=scheme, method=method, backend=Backend.REFERENCE)
        assert np.isfinite(made.steps()).all()
        np.testing.assert_array_equal(made.stored, slow.stored)
        np.testing.assert_array_equal(made.scales, slow.scales)
        assert ((made.scales & 0x7F) < 0x7F).all()


def test_codes_are_the_exact_nearest_of_the_float32_quotient():
    w = gaussian((4, 32))
    made = quantise(w)
    step = made.steps().repeat(16, axis=1)
    values = [Fraction(float(v)) for v in E2M1.values[:8]]
    for x, s, code in zip(w.ravel(), step.ravel(), made.codes.ravel(), strict=True):
        ratio = abs(Fraction(float(np.float32(x / s))))
        best = min(range(8), key=lambda c: (abs(values[c] - ratio), c & 1))
        assert code == best | (8 if x < 0 else 0)


def test_scales_by_hand():
    w = np.zeros((1, 32), np.float32)
    w[0, 0], w[0, 16] = 6.0, 3.0
    made = quantise(w)
    assert made.global_scale == np.float32(6 / 2688)
    assert E4M3.values[made.scales].tolist() == [[448, 224]]
    divide = quantise(w, scheme=NVFP4_DIVIDE)
    assert divide.global_scale == 448
    assert E4M3.values[divide.scales].tolist() == [[448, 224]]
    np.testing.assert_array_equal(divide.weights(), w)
    w8 = quantise(w, scheme=NVFP4_BLOCK32)
    assert w8.global_scale == np.float32(6 / 448)
    assert w8.scales.shape == (1, 1)


def test_shared_amax_gives_a_fused_set_one_scale():
    gate, up = gaussian(seed=1), gaussian(seed=2) * np.float32(3)
    top = nvfp4.shared_amax([gate, up])
    assert top == max(np.abs(gate).max(), np.abs(up).max())
    a, b = quantise(gate, top), quantise(up, top)
    assert a.global_scale is not None
    assert a.global_scale.tobytes() == b.global_scale.tobytes()
    assert a.scales.max() < 0x7E  # gate has headroom
    assert nvfp4.shared_amax([]) == 0


def test_an_amax_smaller_than_the_weights_saturates_and_never_overflows():
    w = gaussian() * np.float32(100)
    made = quantise(w, 0.01)
    assert made.scales.max() == 0x7E
    assert (made.codes & 7).max() == 7
    assert np.isfinite(made.weights()).all()


def test_sweep_loses_least_and_four_over_six_lies_between():
    w = gaussian((64, 512))
    loss = {method: metrics.error(w, quantise(w, method=method)).mse for method in Method}
    assert loss[Method.SWEEP] < loss[Method.FOUR_OVER_SIX] < loss[Method.DYNAMIC]
    assert E4M3.values[quantise(w, method=Method.FOUR_OVER_SIX).scales].max() <= 384


def test_sweep_with_a_hessian_wins_by_its_own_measure():
    rng = np.random.default_rng(7)
    w = gaussian((16, 64))
    x = rng.standard_normal((4, 200, 16)).astype(np.float32) * rng.uniform(0.1, 3, (4, 1, 16)).astype(np.float32)
    h = (x.transpose(0, 2, 1) @ x / 200).astype(np.float32)

    def measure(made):  # type: ignore[no-untyped-def]
        d = (w.astype(np.float64) - made.weights()).reshape(16, 4, 16)
        return np.einsum("rci,cij,rcj->", d, h.astype(np.float64), d)

    plain = measure(quantise(w, method=Method.SWEEP))
    assert measure(quantise(w, method=Method.SWEEP, hessian=h)) < plain


@every
@pytest.mark.parametrize("word", list(Word))
def test_nan_and_infinity_raise_with_their_place(scheme, method, word):
    x = draws.stored_as(gaussian((2, 4, 64)), word)
    bits = {Word.FLOAT32: 0x7F800000, Word.BFLOAT16: 0x7F80, Word.FLOAT16: 0x7C00}[word]
    x.view(np.uint32 if word is Word.FLOAT32 else np.uint16)[1, 2, 33] = bits
    for top in (None, 1.0):
        with pytest.raises(NumericError, match=r"\[1, 2, 33\]: inf"):
            quantise(x, top, scheme=scheme, method=method)


def test_refusals():
    w = gaussian()
    with pytest.raises(NumericError, match="K = 40"):
        quantise(np.ones((2, 40), np.float32))
    with pytest.raises(NumericError, match="K = 48 is no multiple of the block size 32"):
        quantise(np.ones((2, 48), np.float32), scheme=NVFP4_BLOCK32)
    with pytest.raises(NumericError, match="divide convention"):
        quantise(w, scheme=NVFP4_DIVIDE, method=Method.STATIC)
    for method in set(Method) - {Method.DYNAMIC}:  # their formulas have the 6 that blocks of 32 leave out
        with pytest.raises(NumericError, match="blocks of 16"):
            quantise(w, scheme=NVFP4_BLOCK32, method=method)
    with pytest.raises(NumericError, match="no experts"):
        quantise(w, per_expert=True)
    for bad in (-1.0, np.nan, np.inf):
        for scheme in SCHEMES:
            with pytest.raises(NumericError, match=r"negative|not finite"):
                quantise(w, bad, scheme=scheme)
    with pytest.raises(NumericError, match=r"shape \(3,\)"):
        quantise(w, np.ones(3, np.float32))
    broken = gaussian()
    broken[3, 5] = np.inf
    with pytest.raises(NumericError, match=r"\[3, 5\]: inf"):
        with_scales(broken, np.full((8, 4), 0x38, np.uint8), 1.0)
    nan = np.full((8, 4), 0x7F, np.uint8)
    with pytest.raises(NumericError, match="block scale"):
        with_scales(w, nan, 1.0)
    with pytest.raises(NumericError, match="do not fit"):
        with_scales(w, nan[:, :2], 1.0)


def test_dequantising_multiplies_scale_and_global_first():
    made = quantise(gaussian())
    step = (E4M3.values[made.scales] * made.global_scale).astype(np.float32)
    wanted = E2M1.values[unpack_nibbles(made.stored)] * step.repeat(16, axis=1)
    assert made.weights().tobytes() == wanted.tobytes()
    divide = quantise(gaussian(), scheme=NVFP4_DIVIDE)
    step = (E4M3.values[divide.scales] / divide.global_scale).astype(np.float32)
    assert divide.weights().tobytes() == (E2M1.values[divide.codes] * step.repeat(16, axis=1)).tobytes()


def test_a_broken_file_dequantises_to_nan_not_to_an_error():
    made = quantise(gaussian())
    made.scales[0, 0] = 0x7F
    assert np.isnan(made.weights()[0, :16]).all()
    assert np.isfinite(made.weights()[1:]).all()
    with pytest.raises(NumericError, match="global scale"):
        NVFP4.dequantise(made.codes, made.scales)
    assert NVFP4.global_scale is GlobalScale.MULTIPLY


@pytest.mark.parametrize("method", [Method.DYNAMIC, Method.STATIC])
def test_the_current_generation_is_what_quantise_does(method):
    w = gaussian()
    w[1, :16] *= np.float32(1e-4)
    w[2, :16] = 0
    ours, same = quantise(w, method=method), legacy.quantise(w, Generation.BOTH, method)
    np.testing.assert_array_equal(ours.stored, same.stored)
    np.testing.assert_array_equal(ours.scales, same.scales)


def test_older_generations_underflow_overflow_and_divide_by_zero():
    w = gaussian()
    w[1, :16] *= np.float32(1e-6)
    w[2, :16] = 0
    for generation in (Generation.UNCLAMPED, Generation.TOP):
        made = legacy.quantise(w, generation)
        assert made.scales[1, 0] == 0
        assert (unpack_nibbles(made.stored)[1, :16] & 7 == 7).all()
    small = w * np.float32(1e-3)  # in the static path a zero block counts as 6
    assert legacy.quantise(small, Generation.TOP, Method.STATIC).scales[2, 0] == 0x7E
    lost = legacy.quantise(small, Generation.UNCLAMPED, Method.STATIC)
    assert lost.scales[2, 0] == 0x7F
    assert (lost.stored[2, :8] == 0x77).all()
    dead = legacy.quantise(np.zeros((1, 16), np.float32), Generation.UNCLAMPED)
    assert dead.global_scale == 0
    assert dead.scales[0, 0] == 0x7F
    assert (dead.stored == 0x77).all()
    with pytest.raises(NumericError, match="sweep"):
        legacy.quantise(w, Generation.TOP, Method.SWEEP)


@pytest.mark.parametrize("word", list(Word))
def test_divisor_in_the_precision_of_the_weight(word):
    top = np.float32(0.0844727)
    scale = nvfp4.weight_global_scale(top, word)
    half = np.float16(np.float16(1 / top) * np.float16(2688))  # each step rounded to the word
    exact = np.float32(np.float32(1) / top * np.float32(2688))
    wanted = {Word.FLOAT32: exact, Word.FLOAT16: np.float32(half), Word.BFLOAT16: np.float32(31744)}
    assert scale == wanted[word]
    assert nvfp4.weight_global_scale(np.float32(0), word) == 1
    assert nvfp4.weight_global_scale(np.float32(1e-38), word) == 1  # the quotient overflows


def test_a_tiny_amax_still_gives_a_positive_global_scale():
    for top in (2.0**-149, 1e-42, 1e-38):
        w = np.full((1, 16), top, np.float32)
        made = quantise(w)
        assert made.global_scale is not None
        assert made.global_scale > 0
        assert np.isfinite(made.weights()).all()
    assert widen(w).dtype == np.float32
