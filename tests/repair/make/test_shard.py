"""A new shard is what the format's own library reads back, and every byte of it was given exactly once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from auditor.checkpoint import open_checkpoint
from auditor.header import parse
from auditor.tensorref import DTYPE_BITS
from quant.errors import RepairError
from repair.make.shard import Copy, Fill, NewShard, Row, whole
from repair.make.sources import Sources
from repair.osfs import REAL
from repair.shardheader import Entry, header_bytes, ordered
from tests.raw import raw, shard_bytes
from tests.repair.make.writing import write_shard

ENTRY = Entry("x", "U8", (8,))


def write(tmp_path: Path, *pieces: object, entries: tuple[Entry, ...] = (ENTRY,), jobs: int = 1) -> list[Row]:
    shard = NewShard("s.safetensors", entries, (lambda: iter(pieces),), {})  # type: ignore[arg-type]
    (tmp_path / "s.safetensors").unlink(missing_ok=True)
    return write_shard(REAL, tmp_path / "s.safetensors", shard, jobs)


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ((), "its bytes from 0 on were not given exactly once"),
        ((Fill("x", 0, bytes(7)),), "its bytes from 7 on"),
        ((Fill("x", 1, bytes(7)),), "its bytes from 0 on"),
        ((Fill("x", 0, bytes(5)), Fill("x", 4, bytes(4))), "its bytes from 5 on"),
        ((Fill("x", 0, bytes(8)), Fill("x", 0, bytes(8))), "its bytes from 8 on"),
        ((Fill("x", 0, bytes(3)), Fill("x", 4, bytes(4))), "its bytes from 3 on"),
        ((Fill("x", 0, bytes(9)),), r"bytes 0\.\.9 lie outside it"),
        ((Fill("x", -1, bytes(2)),), r"bytes -1\.\.1 lie outside it"),
        ((Fill("y", 0, b"1"),), "y is no tensor of this shard"),
    ],
)
def test_bytes_not_given_exactly_once(tmp_path, pieces, why):
    with pytest.raises(RepairError, match=why):
        write(tmp_path, *pieces)


@given(st.permutations(range(8)), st.sampled_from([1, 3]))
def test_pieces_in_any_order(tmp_path_factory, order, jobs):
    root = tmp_path_factory.mktemp("s")
    rows = write(root, *(Fill("x", at, bytes([at])) for at in order), Row("x"), jobs=jobs)
    assert (root / "s.safetensors").read_bytes()[-8:] == bytes(range(8))
    assert rows == [Row("x")]


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<f4", "<f8"])
def test_views_of_any_item_size(tmp_path, dtype):
    content = np.arange(8 // np.dtype(dtype).itemsize).astype(dtype)
    write(tmp_path, Fill("x", 0, content.data))
    assert (tmp_path / "s.safetensors").read_bytes()[-8:] == content.tobytes()


def test_nothing_is_given_of_an_empty_tensor(tmp_path):
    empty = Entry("e", "F32", (0, 3))
    write(tmp_path, Fill("x", 0, bytes(8)), entries=(empty, ENTRY))
    write(tmp_path, Fill("x", 0, bytes(8)), Fill("e", 0, np.zeros((0, 3), "<f4").data), entries=(empty, ENTRY))
    with safe_open(tmp_path / "s.safetensors", "numpy") as file:
        assert file.get_tensor("e").shape == (0, 3)


def test_copies_stay_inside_their_tensor(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.safetensors").write_bytes(shard_bytes({"a": raw("U8", range(8)), "b": raw("U8", [9])}))
    checkpoint = open_checkpoint(tmp_path / "src")
    ref = checkpoint.tensors["a"]
    with Sources(checkpoint) as sources:
        for offset, length in ((-1, 8), (1, 8), (8, 1), (0, -1)):
            with pytest.raises(RepairError, match=r"would leave the tensor|lie outside it"):
                write(tmp_path, Copy("x", 0, sources, ref, offset, length))
        write(tmp_path, Copy("x", 4, sources, ref, 0, 4), Copy("x", 0, sources, ref, 4, 4))
    assert (tmp_path / "s.safetensors").read_bytes()[-8:] == bytes([4, 5, 6, 7, 0, 1, 2, 3])


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_an_error_of_a_task_ends_it_and_leaves_no_thread(tmp_path, jobs):
    entries = tuple(Entry(f"t{n}", "U8", (1,)) for n in range(20))

    def task(number: int) -> list[Fill]:
        if number == 7:
            raise RepairError("task 7")
        return [Fill(f"t{number}", 0, b"x")]

    tasks = tuple(lambda n=n: iter(task(n)) for n in range(20))
    before = threading.active_count()
    with pytest.raises(RepairError, match="task 7"):
        write_shard(REAL, tmp_path / "s", NewShard("s", entries, tasks, {}), jobs)
    assert threading.active_count() == before


def test_rows_are_in_the_order_of_the_tasks(tmp_path):
    entries = tuple(Entry(f"t{n}", "U8", (1,)) for n in range(30))
    gate = threading.Event()

    def task(number: int):
        if number == 0:
            gate.wait(5)  # the others are done before the first
        elif number == 3:
            gate.set()
        yield Fill(f"t{number}", 0, b"x")
        yield Row(f"t{number}")

    tasks = tuple(lambda n=n: task(n) for n in range(30))
    rows = write_shard(REAL, tmp_path / "s", NewShard("s", entries, tasks, {}), 4)
    assert [row.tensor for row in rows] == [f"t{n}" for n in range(30)]


SAVED = {"F64": "<f8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "F16": "<f2", "I16": "<i2", "U8": "u1", "I8": "i1",
         "BOOL": "?"}  # fmt: skip


def test_the_order_of_the_formats_own_writer(tmp_path):
    """Widest first, then by name; among equals as the library sorts them."""
    arrays = {f"{letter}{dtype}": np.ones(3, kind) for dtype, kind in SAVED.items() for letter in "zam"}
    save_file(arrays, tmp_path / "x.safetensors")
    held = (tmp_path / "x.safetensors").read_bytes()
    refs = sorted(parse(held, "x", len(held)).tensors, key=lambda ref: ref.start)
    assert [entry.name for entry in ordered(Entry(r.name, r.dtype, r.shape) for r in refs)] == [r.name for r in refs]
    entries = ordered(Entry(r.name, r.dtype, r.shape) for r in refs)
    ours = header_bytes(entries, {}, "x")
    length = int.from_bytes(held[:8], "little")
    assert json.loads(ours[8:]) == json.loads(held[8 : 8 + length])


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_is_carried_over(tmp_path, dtype):
    (tmp_path / "src").mkdir()
    count = {4: 2, 6: 4}.get(DTYPE_BITS[dtype], 1) * 4
    size = count * DTYPE_BITS[dtype] // 8
    head = header_bytes([Entry("x", dtype, (count,)), Entry("y", "U8", (3,))], {"format": "pt"}, "m")
    (tmp_path / "src" / "model.safetensors").write_bytes(head + bytes(range(size + 3)))
    checkpoint = open_checkpoint(tmp_path / "src")
    assert not checkpoint.shards["model.safetensors"].header.problems
    with Sources(checkpoint) as sources:
        refs = checkpoint.tensors.values()
        entries = ordered(Entry(ref.name, ref.dtype, ref.shape) for ref in refs)
        shard = NewShard("n.safetensors", entries, tuple(whole(ref.name, sources, ref) for ref in refs))
        write_shard(REAL, tmp_path / "n.safetensors", shard)
    made = (tmp_path / "n.safetensors").read_bytes()
    found = parse(made, "n", len(made))
    assert not found.problems
    assert shard.nbytes == len(made)
    assert {r.name: made[r.start : r.start + r.nbytes] for r in found.tensors} == {
        "x": bytes(range(size)), "y": bytes(range(size, size + 3)),
    }  # fmt: skip


def test_names_that_a_header_cannot_hold():
    for entries, why in (
        ([Entry("\ud800", "U8", (1,))], "half of a surrogate pair"),
        ([ENTRY, ENTRY], "two tensors would be called x"),
        ([Entry("__metadata__", "U8", (1,))], "two tensors would be called __metadata__"),
        ([Entry("x", "F7", (1,))], "x: "),
        ([Entry("x", "F4", (3,))], "x: "),
    ):
        with pytest.raises(RepairError, match=why):
            header_bytes(entries, {}, "s")
