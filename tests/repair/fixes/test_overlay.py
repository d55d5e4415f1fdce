"""Planned bytes over stored ones, against a plain copy of the tensor."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.finding import Safety
from auditor.tensorref import TensorRef
from repair.content import Mapped, piece_of
from repair.fixes.overlay import Overlay

SIZE = 200
REF = TensorRef("w", "U8", (SIZE,), "a.safetensors", 0, SIZE)
SETTINGS = settings(max_examples=300, deadline=None, database=None, derandomize=True)


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.integers(1, 80), st.integers(0, 9)), max_size=8))
def test_bytes_and_tables_over_each_other(steps: list[tuple[bool, int, int, int]]) -> None:
    stored = random.Random(0).randbytes(SIZE)
    overlay = Overlay(lambda ref, at, length: stored[at : at + length])
    now = bytearray(stored)
    for number, (table, at, length, seed) in enumerate(steps):
        end = min(at + length, SIZE)
        if table:
            entries = random.Random(seed).randbytes(256)
            overlay.rescale(REF, at, end - at, entries, f"R{number}", "", Safety.EXACT)
            now[at:end] = now[at:end].translate(entries)
        else:
            new = random.Random(seed).randbytes(end - at)
            overlay.put(REF, at, new, f"R{number}", "", Safety.EXACT)
            now[at:end] = new
        assert overlay.read(REF, 0, SIZE) == now
    made, before = bytearray(stored), 0
    for _, segment, old in overlay.changes():
        assert segment.at >= before
        assert old == stored[segment.at : segment.end]
        made[segment.at : segment.end] = piece_of(segment.new, 0, len(old))
        before = segment.end
    assert made == now


def test_a_table_over_what_is_stored_stays_one() -> None:
    overlay = Overlay(lambda ref, at, length: bytes(range(at, at + length)))
    table = bytes([0, 1, *range(1, 255)])
    overlay.rescale(REF, 0, SIZE, table, "GLB102", "", Safety.EXACT)
    ((_, segment, old),) = overlay.changes()
    assert (segment.at, len(old)) == (2, SIZE - 2)  # the first two stay what they are
    assert isinstance(segment.new, Mapped)
    assert segment.new.table == table
