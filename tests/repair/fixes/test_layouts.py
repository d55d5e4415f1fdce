"""Bytes in another order, a piece at a time, against the whole tensor turned at once."""

from __future__ import annotations

import itertools
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from repair.content import Computed
from repair.fixes.layouts import turned, unswizzled

SETTINGS = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def fetched(raw: bytes, asked: list[int]):
    def fetch(at: int, length: int) -> bytes:
        assert at >= 0
        assert at + length <= len(raw)
        asked.append(length)
        return raw[at : at + length]

    return fetch


def expect(made: Computed, whole: bytes, seed: int) -> None:
    assert made.length == len(whole)
    cuts = sorted({0, len(whole), *(random.Random(seed).randrange(len(whole) + 1) for _ in range(4))})
    for start, end in itertools.pairwise(cuts):
        assert made.piece(start, end - start) == whole[start:end]


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 400), st.integers(0, 99))
def test_a_turned_matrix(rows: int, columns: int, strip: int, seed: int) -> None:
    raw = random.Random(seed).randbytes(rows * columns)
    whole = np.frombuffer(raw, np.uint8).reshape(rows, columns).T.tobytes()
    expect(turned(fetched(raw, []), rows, columns, strip), whole, seed)


def test_a_matrix_of_nothing() -> None:
    assert turned(fetched(b"", []), 0, 7).length == 0


@SETTINGS
@given(st.integers(1, 3), st.integers(1, 300), st.integers(1, 11), st.integers(0, 99))
def test_scales_out_of_the_kernels_order(experts: int, rows: int, columns: int, seed: int) -> None:
    plain = np.frombuffer(random.Random(seed).randbytes(experts * rows * columns), np.uint8)
    plain = plain.reshape(experts, rows, columns)
    high, wide = -(-rows // 128), -(-columns // 4)
    padded = np.zeros((experts, high * 128, wide * 4), np.uint8)
    padded[:, :rows, :columns] = plain
    stored = padded.reshape(experts, high, 4, 32, wide, 4).transpose(0, 1, 4, 3, 2, 5).tobytes()
    asked: list[int] = []
    expect(unswizzled(fetched(stored, asked), experts, rows, columns), plain.tobytes(), seed)
    assert max(asked) == wide * 512
