"""The sweep: the definition against plain arithmetic, the fast sides against the definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quant.backend import Backend
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Word, narrow_bf16, widen
from quant.sweep import candidates, reference, sweep
from quant.sweep.bounds import LARGEST, LARGEST_SUM, floor
from tests.quant import draws


def both(w, amax=None, **kw):  # type: ignore[no-untyped-def]
    fast, slow = sweep(w, amax, **kw), sweep(w, amax, backend=Backend.REFERENCE, **kw)
    np.testing.assert_array_equal(fast.codes, slow.codes)
    np.testing.assert_array_equal(fast.global_amax, slow.global_amax)
    assert 1 <= fast.evaluated <= (126 if "hessian" in kw else 160)  # idle lanes count
    return fast


@pytest.mark.parametrize("power", range(-149, -80, 3))
def test_scales_among_the_subnormals_and_at_zero(power):
    """Scales that underflow to 0 count as 1, so the candidates are not even in order."""
    rng = np.random.default_rng(-power)
    w = np.ldexp(rng.standard_normal((8, 32)), power).astype(np.float32)
    both(w)
    both(w, 2.0**power)
    assert candidates.prunable(np.float32(2.0**power)) == (2.0**power * 2.0**-9 / 2688 >= 2.0**-100)


def test_candidates_are_the_positive_finite_e4m3_values():
    positive = E4M3.values[(E4M3.values > 0) & np.isfinite(E4M3.values)]
    np.testing.assert_array_equal(candidates.VALUES, np.sort(positive))
    assert len(candidates.VALUES) == candidates.COUNT == 126
    for k in (0, 1, 7, 60, 125):
        c = np.float32(np.float64(candidates.VALUES[k]) / 448)  # exact quotient, rounded once
        step = np.float32(np.float64(np.float32(np.float64(c) * np.float64(np.float32(3.7)))) / 6)
        assert candidates.scales(np.float32(3.7))[k] == step


def test_the_definition_is_the_formula_by_hand():
    """One candidate at a time in Python floats, with every step rounded to float32."""
    f = np.float32
    rng = np.random.default_rng(3)
    w = rng.standard_normal((5, 16)).astype(f)
    scale = candidates.scales(np.abs(w).max())
    got = reference.losses(w, scale[None])
    for n in range(5):
        for k in range(126):
            square = []
            for x in np.abs(w[n]):
                ratio = f(float(x) / float(scale[k]))
                near = min(
                    range(8), key=lambda c: (abs(Fraction(float(E2M1.values[c])) - Fraction(float(ratio))), c & 1)
                )
                err = f(float(x) - float(f(float(E2M1.values[near]) * float(scale[k]))))
                square.append(f(float(err) * float(err)))
            total = f(float(square[0]) + float(square[8]))
            for j in range(1, 8):
                total = f(float(total) + float(f(float(square[j]) + float(square[j + 8]))))
            assert got[n, k] == total
        assert reference.best_codes(w[n : n + 1], scale[None])[0] == 1 + int(np.argmin(got[n]))


@settings(max_examples=120, deadline=None)
@given(w=draws.blocks(), word=draws.words, above=st.sampled_from([None, 0.0, 0.3, 1.0, 1.7, 1e3, 1e-30]))
def test_winners_are_those_of_the_definition(w, word, above):
    x = draws.stored_as(w, word)
    top = None if above is None else min(float(np.abs(widen(x)).max()) * above, 3.4e38)
    both(x, top)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 6), power=st.integers(-140, 120))
def test_blocks_on_the_lattice_of_their_own_candidates(seed, size, power):
    """Blocks made of code · scale: losses of exactly 0 and exact ties between neighbouring candidates."""
    rng = np.random.default_rng(seed)
    top = np.float32(2.0**power) * np.float32(rng.choice([1.0, 1.5, 2688 / 4096, 1.1]))
    scale = candidates.scales(np.asarray(top))
    own = scale[rng.integers(0, 126, (24, 1))]
    w = rng.choice(np.array(draws.LATTICE, np.float32), (24, 16)) * own
    w[rng.random(w.shape) < size / 10] = 0
    both(w.astype(np.float32), top)


def gram(rng, samples=64):  # type: ignore[no-untyped-def]
    x = rng.standard_normal((2, samples, 16)).astype(np.float32)
    return (x.transpose(0, 2, 1) @ x / samples).astype(np.float32)


@settings(max_examples=30, deadline=None)
@example(w=draws.finite_bits(np.random.default_rng(5), (6, 32)), seed=0, kind="gram")  # sizes of 76 decades at once
@given(
    w=draws.blocks(rows=6, columns=32), seed=st.integers(0, 99), kind=st.sampled_from(["gram", "weak", "odd", "zero"])
)
def test_hessian_winners_are_those_of_the_definition(w, seed, kind):
    rng = np.random.default_rng(seed)
    h = gram(rng)
    if kind == "weak":
        h[:, 4] = h[:, 5]  # singular: nothing can be pruned
        h[:, :, 4] = h[:, :, 5]
    if kind == "odd":
        h = rng.standard_normal((2, 16, 16)).astype(np.float32)  # neither symmetric nor positive
    both(w, hessian=h * np.float32(kind != "zero"))


@settings(max_examples=40, deadline=None)
@example(seed=21, power=70, inverse=1, spread=0)  # squares overflow, losses do not
@given(
    seed=st.integers(0, 2**32 - 1),
    power=st.integers(-126, 126),
    inverse=st.sampled_from([0, 1, 2]),
    spread=st.integers(0, 30),
)
def test_hessian_winners_where_squares_or_losses_leave_float32(seed, power, inverse, spread):
    """Weights of 2^power and a matrix of as many times less: what is pruned must be proved at every size."""
    rng = np.random.default_rng(seed)
    w = np.ldexp(rng.standard_normal((6, 32)), power + rng.integers(-spread, spread + 1, (6, 32)))
    h = np.ldexp(gram(rng, 400).astype(np.float64), -inverse * power)
    top = np.finfo(np.float32).max
    both(np.clip(w, -top, top).astype(np.float32), hessian=np.clip(h, -top, top).astype(np.float32))


@pytest.mark.parametrize("power", [-60, 0, 60])
def test_blocks_up_to_the_limit_are_pruned_and_beyond_it_are_not(power):
    w = np.clip(np.random.default_rng(9).standard_normal((32, 32)), -3, 3).astype(np.float32)
    w[:, ::16] = 4
    h = np.ldexp(np.broadcast_to(np.eye(16, dtype=np.float32), (2, 16, 16)), power)
    assert both(w * (LARGEST / 4), hessian=h).evaluated < 40
    assert both(w * (LARGEST / 2), hessian=h).evaluated == 126


def test_no_bound_where_the_matrix_could_overflow_a_loss():
    eye = np.eye(16, dtype=np.float32)[None]
    assert (floor(eye * np.float32(LARGEST_SUM)) > 0.99 * LARGEST_SUM).all()
    assert (floor(eye * np.float32(2 * LARGEST_SUM)) == 0).all()


def test_a_unit_hessian_is_pruned_and_a_singular_one_is_not():
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    eye = np.broadcast_to(np.eye(16, dtype=np.float32), (2, 16, 16)).copy()
    assert (floor(eye) > 0.99).all()
    assert both(w, hessian=eye).evaluated < 40
    eye[:, 3, 3] = 0
    assert (floor(eye) == 0).all()
    assert both(w, hessian=eye).evaluated == 126


@pytest.mark.parametrize("name", ["gauss", "laplace", "student"])
def test_sixteen_candidates_are_enough_on_average(name):
    rng = np.random.default_rng(5)
    shape = (256, 1024)
    w = {
        "gauss": rng.standard_normal,
        "laplace": lambda s: rng.laplace(size=s),
        "student": lambda s: rng.standard_t(3, s),
    }
    x = narrow_bf16(w[name](shape).astype(np.float32))
    assert sweep(x).evaluated <= 16
    both(x[:24])


def test_experts_share_one_amax_or_have_their_own():
    w = np.random.default_rng(1).standard_normal((3, 8, 64)).astype(np.float32)
    w[1] *= 40
    own = both(w, per_expert=True)
    assert own.global_amax.shape == (3,)
    for e in range(3):
        np.testing.assert_array_equal(own.codes[e], sweep(w[e]).codes)
    shared = both(w)
    np.testing.assert_array_equal(shared.codes[0], sweep(w[0], float(np.abs(w).max())).codes)
    assert (shared.codes[0] != own.codes[0]).any()
    given_amax = both(w, own.global_amax)
    np.testing.assert_array_equal(given_amax.codes, own.codes)


def test_ties_end_at_the_smallest_scale():
    zero = sweep(np.zeros((2, 32), np.float32))
    assert (zero.codes == 1).all()
    assert zero.global_amax == 0
    live = np.ones((1, 32), np.float32)
    live[0, 16:] = 0
    assert both(live).codes[0, 1] == 1
    one = np.zeros((1, 16), np.float32)
    one[0, 3] = 6
    exact = np.flatnonzero(reference.losses(one, candidates.scales(np.float32(6 * 448.0))[None])[0] == 0)
    assert len(exact) > 1  # 6 is a code of several scales
    assert both(one, 6 * 448.0).codes[0, 0] == exact[0] + 1


@pytest.mark.parametrize("word", list(Word))
def test_nan_is_refused_with_its_place(word):
    x = draws.stored_as(np.ones((2, 3, 16), np.float32), word)
    x.view(np.uint32 if word is Word.FLOAT32 else np.uint16)[1, 2, 5] = 0x7FC00000 if word is Word.FLOAT32 else 0x7FC0
    with pytest.raises(NumericError, match=r"\[1, 2, 5\]: nan"):
        sweep(x)


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("hessian", [None, np.zeros((2, 16, 16), np.float32)])
@pytest.mark.parametrize(("shape", "per_expert"), [((0, 4, 32), True), ((0, 4, 32), False), ((0, 32), False)])
def test_no_weights_give_no_scales(shape, per_expert, hessian, backend):
    found = sweep(np.empty(shape, np.float32), per_expert=per_expert, hessian=hessian, backend=backend)
    assert found.codes.shape == (*shape[:-1], 2)
    assert found.global_amax.shape == ((0,) if per_expert else ())
    assert found.evaluated == 0


def test_bad_shapes_and_amax_are_refused():
    w = np.ones((2, 4, 32), np.float32)
    for bad, message in ((-1.0, "negative"), (np.inf, "not finite"), (np.ones(3, np.float32), "shape")):
        with pytest.raises(NumericError, match=message):
            sweep(w, bad)
    with pytest.raises(NumericError, match="K = 20"):
        sweep(np.ones((2, 20), np.float32))
    with pytest.raises(NumericError, match="per expert"):
        sweep(w[0], per_expert=True)
    with pytest.raises(NumericError, match=r"float32 \[2, 16, 16\]"):
        sweep(w, hessian=np.zeros((1, 16, 16), np.float32))
    hessian = np.zeros((2, 16, 16), np.float32)
    hessian.view(np.uint32)[1, 2, 3] = 0x7FC00000
    with pytest.raises(NumericError, match=r"\[1, 2, 3\]: nan"):
        sweep(w, hessian=hessian)
