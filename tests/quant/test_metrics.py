"""Error sums against plain float64 arithmetic, whole and in chunks; counts of scale codes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import fp8, metrics, mx, nvfp4
from quant.backend import Backend
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Word, widen
from quant.metrics import ErrorSums
from quant.quantised import Quantised
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, MXFP4, MXFP8, NVFP4_DIVIDE, GlobalScale, Scheme
from tests.quant import draws

CLOSE = 1e-12  # float64 sums of up to 1e5 terms in two orders


def close(a: ErrorSums, b: ErrorSums) -> None:
    assert a.count == b.count
    assert a.largest == b.largest
    for name in ("squared", "source", "result", "product"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=CLOSE, abs=1e-300, nan_ok=True), name


def makers(w):  # type: ignore[no-untyped-def]
    yield nvfp4.quantise(w)
    yield nvfp4.quantise(w, scheme=NVFP4_DIVIDE)
    yield mx.quantise(w, MXFP4)
    yield mx.quantise(w, MXFP8)
    for scheme in (FP8_TENSOR, FP8_CHANNEL, FP8_BLOCK):
        yield fp8.quantise(w, scheme)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), word=draws.words, rows=st.integers(1, 150), columns=st.integers(1, 40))
def test_the_fast_error_is_the_definition(seed, word, rows, columns):
    x = np.random.default_rng(seed).standard_normal((rows, columns * 32)).astype(np.float32)
    w = draws.stored_as(x, word)
    for made in makers(w):
        close(metrics.error(w, made), metrics.error(w, made, Backend.REFERENCE))


def test_blocks_that_do_not_divide_the_chunk():
    rng = np.random.default_rng(0)
    scheme = Scheme(E2M1, E4M3, (48,), GlobalScale.MULTIPLY)
    stored, scales = rng.integers(0, 256, (3, 1200), np.uint8), rng.integers(1, 127, (3, 50)).astype(np.uint8)
    w = rng.standard_normal((3, 2400)).astype(np.float32)
    made = Quantised(scheme, stored, scales, np.asarray(0.01, np.float32))
    close(metrics.error(w, made), metrics.error(w, made, Backend.REFERENCE))


def test_the_definition_by_hand():
    w, v = np.array([3, -4, 0], np.float32), np.array([3.5, -4, 1], np.float32)
    made = metrics.compare(w, v)
    assert made == ErrorSums(3, 1.25, 25.0, 29.25, 26.5, 1.0)
    assert made.mse == 1.25 / 3
    assert made.sqnr == 10 * math.log10(20)
    assert made.relative == 0.05
    assert made.cosine == pytest.approx(26.5 / math.sqrt(25 * 29.25))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 64), max_size=5))
def test_chunks_add_up(seed, cuts):
    w = np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)
    made = nvfp4.quantise(w, 5.0)
    edges = [0, *sorted(cuts), 64]
    total = ErrorSums()
    for a, b in itertools.pairwise(edges):
        total += metrics.error(w[a:b], nvfp4.quantise(w[a:b], 5.0))
    close(total, metrics.error(w, made))


def test_no_error_and_no_source():
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert metrics.compare(one, one).sqnr == math.inf
    assert metrics.compare(one, one).cosine == 1
    assert metrics.compare(zero, zero).cosine == 1
    assert metrics.compare(zero, one).cosine == 0
    assert metrics.compare(zero, one).sqnr == -math.inf
    assert metrics.compare(zero, one).relative == math.inf
    assert metrics.compare(zero, zero).relative == 0
    assert ErrorSums().mse == 0


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("word", list(Word))
def test_nan_and_infinity_show(backend, word):
    w = draws.stored_as(np.ones((2, 64), np.float32), word)
    made = nvfp4.quantise(w)
    made.scales[1, 2] = 0x7F
    broken = metrics.error(w, made, backend)
    assert math.isnan(broken.squared)
    assert math.isnan(broken.largest)
    assert broken.source == metrics.compare(w, w).source


def test_accumulation_is_float64():
    w = np.full((64, 4096), 1.0, np.float32)
    w[0, 0] = 4096
    made = nvfp4.quantise(w, 4096.0)
    wide = widen(w).astype(np.float64)
    assert metrics.error(w, made).source == (wide * wide).sum()  # float32 would stop at 2^24


def test_shapes_must_agree():
    w = np.ones((2, 64), np.float32)
    made = nvfp4.quantise(w)
    for backend in Backend:
        with pytest.raises(NumericError, match="cannot compare"):
            metrics.error(w[:1], made, backend)
