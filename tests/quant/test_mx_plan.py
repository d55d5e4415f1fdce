"""A plan made piece by piece is the same however the pieces are cut, and reads codes only where scales do not tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant import mx_rows
from quant.mx_plan import Way, energy, plan
from quant.mx_rows import chunks, live_range, survey
from quant.mx_to_nv import Source, cast_set
from quant.mx_window import Blocks, new_scales
from tests.quant.test_mx_to_nv import make, weights_of

Bytes = NDArray[np.uint8]


class Counting:
    """Rows in memory that note which codes were asked for."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, "counted"
        self.rows, self.blocks = source.scales.shape
        self.read = np.zeros(self.rows, np.int64)

    def scales(self, first: int, last: int) -> Bytes:
        return self.source.scales[first:last]

    def packed(self, first: int, last: int) -> Bytes:
        self.read[first:last] += 1
        return self.source.packed[first:last]

    def place(self, row: int, block: int) -> str:
        return str([row, block])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.integers(0, 40),
    allowed=st.sampled_from([range(8), (0, 1, 2, 3), (0, 2, 4, 5, 6, 7), (0, 1), (7,)]),
    parts=st.integers(1, 3),
    size=st.sampled_from([16, 64, 200]),
)
def test_pieces_of_any_size_give_the_same(monkeypatch_module, seed, spread, allowed, parts, size):
    rng = np.random.default_rng(seed)
    sources = [make(rng, spread, allowed, top=130) for _ in range(parts)]
    whole = cast_set(sources)
    monkeypatch_module(size)
    try:
        pieces = cast_set(sources)
    finally:
        monkeypatch_module(None)
    for a, b in zip(whole, pieces, strict=True):
        assert (a.way, a.m) == (b.way, b.m)
        np.testing.assert_array_equal(a.quantised.stored, b.quantised.stored)
        np.testing.assert_array_equal(a.quantised.scales, b.quantised.scales)
        np.testing.assert_array_equal(a.error, b.error)


@pytest.fixture(scope="module")
def monkeypatch_module():
    """Sets how many bytes of codes are looked at at once; None as it was."""
    usual, sizes = chunks.__defaults__, (mx_rows._CODES, mx_rows._SCALES)

    def cut(size: int | None) -> None:
        chunks.__defaults__ = usual if size is None else (size, *usual[1:])
        mx_rows._CODES, mx_rows._SCALES = sizes if size is None else (size, size)

    yield cut
    cut(None)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), spread=st.integers(0, 30), zero=st.floats(0, 1), byte=st.booleans())
def test_the_range_of_live_blocks_is_found(seed, spread, zero, byte):
    rng = np.random.default_rng(seed)
    source = make(rng, spread, shape=(9, 5), top=200)
    dead = rng.random(source.scales.shape) < zero
    source.packed.reshape(9, 5, 16)[dead] &= 0x88
    source.scales[dead] = 0 if byte else rng.integers(0, 255, int(dead.sum()))
    live = (source.packed.reshape(9, 5, 16) & 0x77).any(-1)
    k = source.scales.astype(int)[live] - 127
    found = live_range(Counting(source), *survey(Counting(source)))
    assert found == ((k.min(), k.max()) if k.size else None)


def test_within_the_window_two_rows_of_codes_are_enough():
    rng = np.random.default_rng(0)
    rows = Counting(Source(rng.integers(0, 256, (1000, 64), np.uint8), rng.integers(110, 125, (1000, 4), np.uint8)))
    made = plan([rows])
    assert made.verbatim
    assert rows.read.sum() <= 60  # rows that lie between two of them are read along
    assert rows.read.max() <= 2
    zero = rng.integers(0, 1000, 5)
    rows.source.packed[zero] &= 0x88
    rows.source.scales[zero] = 0  # zero blocks far below are looked at, each once
    again = Counting(rows.source)
    assert plan([again]).verbatim
    assert (again.read[zero] == 1).all()
    assert again.read.sum() <= 90


def test_outcomes_are_those_of_the_blocks():
    rng = np.random.default_rng(7)
    sources = [make(rng, 25, shape=(12, 6)) for _ in range(2)]
    made, done = plan([Counting(s) for s in sources]), cast_set(sources)
    for source, outcome, one in zip(sources, made.outcomes, done, strict=True):
        assert outcome.blocks == one.exact.size
        assert outcome.exact == one.exact.sum()
        assert outcome.error == pytest.approx(one.error.sum(), rel=1e-12)
        squares = float((weights_of(source) ** 2).sum())
        assert outcome.energy == pytest.approx(squares, rel=1e-12)
        assert energy(Counting(source)) == outcome.energy
        assert Blocks(source.packed, source.scales).amax() == np.abs(weights_of(source)).max()
    assert made.way in Way


@given(m=st.integers(-135, 119))
def test_new_scales_are_powers_of_two_where_e4m3_has_them(m):
    from quant.cast import decode
    from quant.codes import E4M3

    codes = np.arange(255, dtype=np.uint8).reshape(1, -1)
    values = decode(E4M3, new_scales(codes, m)).astype(np.float64)[0]
    e = np.repeat(np.arange(255) - 127 - m, 2)
    inside = (e >= -9) & (e <= 8)
    np.testing.assert_array_equal(values, np.where(inside, 2.0**e, 1.0))
