"""Chunks cover a weight once, whatever their size; results do not depend on it; what is not finite is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make import requantise_task as task
from repair.make.layouts import Layout
from repair.make.recipe import Method, Recipe
from repair.make.requantise_weights import Weight
from tests.raw import Raw, raw
from tests.repair.make.requantising import requantise, tensors
from tests.repair.make.unquantised import Model, source


class Memory:
    """A reader of one tensor."""

    def __init__(self, values):
        self.content = values.tobytes()

    def read(self, ref, at, length):
        assert 0 <= at <= at + length <= len(self.content)
        return self.content[at : at + length]


@given(
    slabs=st.integers(1, 3), rows=st.integers(1, 9), blocks=st.integers(1, 5), across=st.booleans(),
    step=st.sampled_from([1, 2]), chunk=st.sampled_from([1, 16, 40, 64, 1000]), data=st.data(),
)  # fmt: skip
def test_chunks_are_the_weight(slabs, rows, blocks, across, step, chunk, data):
    """Rows of a slab, every second one too, from a tensor stored either way round; each weight once, in order."""
    high, columns = rows * step, blocks * 16
    values = np.arange(slabs * high * columns, dtype="<f4").reshape(slabs, high, columns)
    held = np.ascontiguousarray(values.transpose(0, 2, 1)) if across else values
    first = data.draw(st.integers(0, step - 1))
    ref = TensorRef("x", "F32", held.shape, "a.safetensors", 0, held.nbytes)
    weight = Weight("x", ref, range(slabs), range(first, high, step), high, columns, across)
    seen = np.full((slabs, rows, columns), -1, np.float32)
    before, task.CHUNK = task.CHUNK, chunk
    try:
        for slab, row, column, w in task.chunks(weight, Memory(held)):
            assert w.flags.c_contiguous
            assert w.shape[1] % 16 == 0
            assert w.size <= max(chunk, 16 * (high if across else 1))
            part = seen[slab, row : row + w.shape[0], column : column + w.shape[1]]
            assert (part == -1).all()
            part[:] = w
    finally:
        task.CHUNK = before
    np.testing.assert_array_equal(seen, values[:, first::step])


@pytest.mark.parametrize("kind", ["qwen3moe", "qwen3moe_fused", "gptoss", "llama4"])
@pytest.mark.parametrize(("chunk", "kept"), [(16, 0), (16 * 7, 0), (1 << 21, 0), (16 * 7, 1 << 22)])
def test_the_same_bytes_whatever_the_chunks(kind: str, chunk: int, kept: int, monkeypatch, tmp_path: Path):
    root = source(kind).write(tmp_path / "src", ["a.safetensors", "b.safetensors"])
    for layout in Layout:
        requantise(root, tmp_path / f"{layout}-a", Recipe("t", method=Method.MSE, layout=layout))
    monkeypatch.setattr(task, "CHUNK", chunk)
    monkeypatch.setattr(task, "_KEPT", kept)
    for layout in Layout:
        requantise(root, tmp_path / f"{layout}-b", Recipe("t", method=Method.MSE, layout=layout), jobs=3)
        assert tensors(tmp_path / f"{layout}-a") == tensors(tmp_path / f"{layout}-b")


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "nan"), (-np.inf, "-inf")])
@pytest.mark.parametrize("kind", ["qwen3moe", "qwen3moe_fused", "gptoss"])
def test_a_weight_that_is_not_finite_is_named_with_its_index(kind: str, bad: float, said: str, tmp_path: Path):
    model = source(kind)
    name = {"qwen3moe": "model.layers.0.mlp.experts.1.up_proj.weight"}.get(
        kind, "model.layers.0.mlp.experts.gate_up_proj"
    )
    one = model.tensors[name]
    at = one.size - 3
    model.tensors[name] = one.bytes_at(2 * at, raw("BF16", np.asarray([bad])).data)
    index = [int(i) for i in np.unravel_index(at, one.shape)]
    with pytest.raises(RepairError) as error:
        requantise(model.write(tmp_path / "src"), tmp_path / "new", Recipe("t"))
    assert f"{name}: the weight at {index} is {said}" in str(error.value)


def test_a_slab_too_wide_to_be_turned(tmp_path: Path):
    """16 inputs of every row must be in memory; no model has a slab of millions of rows."""
    ref = TensorRef("x", "F32", (1, 16, 1 << 30), "a.safetensors", 0, 1 << 36)
    weight = Weight("x", ref, range(1), range(1 << 30), 1 << 30, 16, across=True)
    with pytest.raises(RepairError, match="1073741824 rows"):
        next(task.chunks(weight, Memory(np.zeros(1, "<f4"))))


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("across", [False, True])
def test_memory_does_not_grow_with_the_tensor(across: bool, layout: Layout, tmp_path: Path):
    """100 MB of experts in one tensor and its partner; arrays alive at once, two tasks at work."""
    import tracemalloc

    shapes = {"gate_up_proj": (16, 2048, 1024), "down_proj": (16, 1024, 1024)}
    held = {}
    for leaf, (count, rows, columns) in shapes.items():
        shape = (count, columns, rows) if across else (count, rows, columns)
        values = np.random.default_rng(0).integers(0x3C00, 0x3F00, shape, np.uint16).astype("<u2")
        held[f"model.layers.0.feed_forward.experts.{leaf}"] = Raw("BF16", shape, values.tobytes())
    model = Model({"model_type": "llama4_text" if across else "qwen3_moe"}, held, {}, [])
    root = model.write(tmp_path / "src")
    size = sum(len(one.data) for one in held.values())
    del held, model, values
    requantise(source("llama").write(tmp_path / "small"), tmp_path / "compiled", Recipe("t", method=Method.MSE))
    tracemalloc.start()
    try:
        requantise(root, tmp_path / "new", Recipe("t", method=Method.MSE, layout=layout), jobs=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 100e6
    assert peak < 50e6, peak
