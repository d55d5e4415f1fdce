"""Evidence: values, places, handles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from auditor.blocks import Kind
from auditor.context import Context
from auditor.engine import examine
from auditor.tensorref import TensorRef
from quant.errors import CheckpointError
from tests.forge import make
from tests.raw import Raw, raw, shard_bytes


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    model = make("modelopt-nvfp4").copy()
    name = "model.layers.0.self_attn.o_proj"
    model.tensors[f"{name}.weight_scale_2"] = Raw("F8_E4M3", (), b"\x7f")
    model.tensors[f"{name}.input_scale"] = raw("BF16", np.float32([0.5]))
    context, _ = examine(model.write(tmp_path, 2), depth=Depth.SCALES, rules=[])
    yield context
    context.close()


def ref(ctx: Context, name: str) -> TensorRef:
    return ctx.checkpoint.tensors[f"model.layers.0.self_attn.{name}"]


def test_values_of_every_dtype(ctx: Context) -> None:
    assert ctx.scalar(ref(ctx, "o_proj.input_scale")) == 0.5
    nan = ctx.scalar(ref(ctx, "o_proj.weight_scale_2"))
    assert nan is not None
    assert math.isnan(nan)
    stored = make("modelopt-nvfp4").tensors["model.layers.0.self_attn.q_proj.weight_scale_2"]
    assert ctx.scalar(ref(ctx, "q_proj.weight_scale_2")) == float(stored.values())
    assert ctx.scalar(None) is None
    assert ctx.values(ref(ctx, "q_proj.weight")) is None


def test_statistics_are_of_one_kind(ctx: Context) -> None:
    scales = ref(ctx, "q_proj.weight_scale")
    assert ctx.byte_stats(scales) is not None
    assert ctx.float_stats(scales) is None
    assert ctx.code_stats(ref(ctx, "q_proj.weight")) is None
    assert ctx.byte_stats(None) is None


def test_places_of_wide_elements(ctx: Context) -> None:
    scale = ref(ctx, "q_proj.weight_scale_2")
    (place,) = ctx.places(scale, [0])
    stored = make("modelopt-nvfp4").tensors["model.layers.0.self_attn.q_proj.weight_scale_2"]
    assert place.index == ()
    assert place.offset == scale.start
    assert int(place.old, 16) == int.from_bytes(stored.data, "little")


@pytest.mark.parametrize("index", [0, 1, 63])
def test_places_in_a_wide_tensor(ctx: Context, index: int) -> None:
    norm = ctx.checkpoint.tensors["model.norm.weight"]
    (place,) = ctx.places(norm, [index])
    stored = make("modelopt-nvfp4").tensors["model.norm.weight"].data
    assert place.offset == norm.start + 2 * index
    assert int(place.old, 16) == int.from_bytes(stored[2 * index : 2 * index + 2], "little")


def test_at_most_eight_places_are_read(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    scales, asked = ref(ctx, "q_proj.weight_scale"), []
    true = ctx.read
    monkeypatch.setattr(ctx, "read", lambda *args: asked.append(args) or true(*args))
    assert [p.index for p in ctx.places(scales, range(100))] == [(i // 4, i % 4) for i in range(8)]
    assert len(asked) == 8


def test_a_byte_counts_once_as_read(ctx: Context) -> None:
    """Scales were measured; codes count when they are first asked for, in whatever pieces."""
    before = ctx.bytes_read
    ctx.read(ref(ctx, "q_proj.weight_scale"), 0, 8)
    assert ctx.bytes_read == before
    codes = ref(ctx, "q_proj.weight")
    for at, length in ((0, 8), (4, 8), (0, 8), (100, 1), (12, 4), (96, 8)):
        ctx.read(codes, at, length)
    assert ctx.bytes_read == before + 16 + 8


def test_bytes_between_tensors_count_once(tmp_path: Path) -> None:
    """Codes so few that they were read with the scales on both sides of them, and then asked for."""
    parts = {
        "m.weight": Raw("U8", (2, 16), bytes(32)),
        "m.weight_scale": Raw("F8_E4M3", (2, 2), b"\x38" * 4),
        "m.weight_scale_2": raw("F32", np.float32(0.1)),
    }
    (tmp_path / "model.safetensors").write_bytes(shard_bytes(parts))
    ctx, audit = examine(tmp_path, rules=[])
    assert audit.bytes_read == audit.bytes_held
    before = ctx.bytes_read
    ctx.read(ctx.checkpoint.tensors["m.weight"], 0, 32)
    assert ctx.bytes_read == before
    ctx.close()


@pytest.mark.parametrize(("at", "length"), [(-1, 1), (0, 257), (256, 1)])
def test_reads_stay_inside_the_tensor(ctx: Context, at: int, length: int) -> None:
    with pytest.raises(CheckpointError, match="outside the tensor"):
        ctx.read(ref(ctx, "q_proj.weight_scale"), at, length)


def test_blocks_are_looked_at_once(ctx: Context) -> None:
    layer = ctx.layers[0]
    first = ctx.blocks(layer, Kind.NAN)
    read = ctx.bytes_read
    assert ctx.blocks(layer, Kind.NAN) is first
    assert ctx.bytes_read == read


def test_open_files_are_bounded(tmp_path: Path) -> None:
    context, _ = examine(make("modelopt-nvfp4").write(tmp_path, 70), depth=Depth.HEADERS, rules=[])
    for tensor in context.checkpoint.tensors.values():
        context.read(tensor, 0, 1)
        assert len(context._files) <= 64
    context.close()
    assert not context._files


def test_peers_and_groups(tmp_path: Path) -> None:
    context, _ = examine(make("modelopt-nvfp4-moe").write(tmp_path), depth=Depth.HEADERS, rules=[])
    peers = context.peers["model.layers.0.mlp.experts.3.down_proj"]
    assert [p.name.split(".")[5] for p in peers] == list("012345")
    assert "model.layers.0.self_attn.q_proj" not in context.peers
    fused = context.fused["model.layers.0.mlp.experts.3.up_proj"]
    assert fused.leaves == ("gate_proj", "up_proj")
    assert "model.layers.0.mlp.experts.3.down_proj" not in context.fused
