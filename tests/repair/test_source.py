"""Layouts that no small real export shows: transposed experts, quantised sources, edges, sources that are broken."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from auditor.checkpoint import open_checkpoint
from auditor.layer import recognise
from quant import fp8, mx, nvfp4
from quant.errors import CheckpointError, RepairError, ToolError
from quant.floats import narrow_bf16, widen
from quant.scheme import FP8_BLOCK, MXFP4
from repair.measure_error import layer_error
from repair.restore import Restorer
from repair.restore_evidence import require_source, saturation
from repair.restore_floats import float_values
from repair.restore_habits import Habits
from repair.restore_pieces import Files, Overlay, Piece
from repair.source import Source
from tests.raw import WIDTH, Raw, shard_bytes

RNG = np.random.default_rng(11)
DOT = "model.layers.0.mlp.experts"


def made(dtype, x):
    return Raw(dtype, x.shape, np.ascontiguousarray(x).tobytes())


def bf16(*shape):
    """Random bfloat16 words and what they mean."""
    words = narrow_bf16(RNG.standard_normal(shape).astype(np.float32))
    return words, widen(words)


def folder(path, tensors, kind="llama"):
    path.mkdir()
    (path / "model.safetensors").write_bytes(shard_bytes(tensors))
    (path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return path


@contextmanager
def both(ours, theirs):
    checkpoint = open_checkpoint(ours)
    found = recognise(checkpoint.tensors.values())
    with Source(theirs, checkpoint, found) as source, Files(checkpoint) as files:
        yield Habits(source, files, found.layers), found.layers


def nvfp4_3d(name, w, amax=None):
    """A fused 3-D layer [E, N, K] as exporters store it: transposed, one global scale."""
    q = nvfp4.quantise(w, float(np.abs(w).max()) if amax is None else amax)
    return {
        name: made("U8", q.stored.swapaxes(1, 2)),
        f"{name}_weight_scale": made("F8_E4M3", q.scales.swapaxes(1, 2)),
        f"{name}_weight_scale_2": made("F32", np.asarray(q.global_scale)),
    }


@pytest.mark.parametrize("stored", ["columns first", "rows first", "each expert"])
def test_transposed_experts(tmp_path, stored):
    """gpt-oss: gate and up rows alternate; blocks run down the columns of the stored tensor."""
    words, w = bf16(2, 96, 64)
    ours = folder(tmp_path / "ours", nvfp4_3d(f"{DOT}.gate_up_proj", w), "gpt_oss")
    if stored == "each expert":
        tensors = {f"{DOT}.{e}.gate_proj.weight": made("BF16", words[e, 0::2]) for e in range(2)}
        tensors |= {f"{DOT}.{e}.up_proj.weight": made("BF16", words[e, 1::2]) for e in range(2)}
    else:
        tensors = {f"{DOT}.gate_up_proj": made("BF16", words.swapaxes(1, 2) if stored == "columns first" else words)}
    with both(ours, folder(tmp_path / "theirs", tensors, "gpt_oss")) as (habits, (layer,)):
        sound = (ours / "model.safetensors").read_bytes()
        places = [0, 5, 96, 383, 384, 700]  # flat in [E, K / 16, N]
        damage = []
        for place in places:
            e, block, row = place // 384, place % 384 // 96, place % 96
            damage.append(Piece(layer.scales, place, b"\x7f"))
            at = [(e * 32 + block * 8 + j) * 96 + row for j in range(8)]
            damage += [Piece(layer.codes, one, b"\x77") for one in at]
        hurt = Overlay(habits.reader, damage)
        restorer = Restorer(habits)
        after = Overlay(hurt, list(restorer.blocks(layer, places)))
        again = Overlay(habits.reader, list(restorer.requantise([layer])))
        for ref in layer.parts.values():
            wanted = sound[ref.start : ref.start + ref.nbytes]
            assert after.read(ref, 0, ref.nbytes) == wanted == again.read(ref, 0, ref.nbytes)
        assert np.isnan(layer_error(layer, habits.source, hurt).mse)
        assert layer_error(layer, habits.source, after).sqnr > 18


def test_a_source_in_mxfp4(tmp_path):
    """gpt-oss is published in MXFP4: blocks of the 4-D tensor are read as weights."""
    _, w = bf16(2, 64, 96)
    q = mx.quantise(w, MXFP4)
    theirs = folder(
        tmp_path / "theirs",
        {
            f"{DOT}.gate_up_proj_blocks": made("U8", q.stored.reshape(2, 64, 3, 16)),
            f"{DOT}.gate_up_proj_scales": made("U8", q.scales),
        },
    )
    ours = folder(tmp_path / "ours", nvfp4_3d(f"{DOT}.gate_up_proj", q.weights()), "gpt_oss")
    with both(ours, theirs) as (habits, (layer,)):
        for first, last in ((0, 64), (3, 7), (63, 64)):
            np.testing.assert_array_equal(habits.source.rows(layer, 1, first, last), q.weights()[1, first:last])
        after = Overlay(habits.reader, list(Restorer(habits).requantise([layer])))
        assert layer_error(layer, habits.source, after) == layer_error(layer, habits.source, habits.reader)


def fp8_block(name, w, dtype="F32"):
    q = fp8.quantise(w, FP8_BLOCK)
    scales = q.scales.astype(np.float32)
    held = made("F32", scales) if dtype == "F32" else made("BF16", narrow_bf16(scales))
    return {f"{name}.weight": made("F8_E4M3", q.stored), f"{name}.weight_scale_inv": held}, q


def test_a_source_in_block_fp8_with_partial_edges(tmp_path):
    _, w = bf16(200, 192)
    name = "model.layers.0.mlp.up_proj"
    tensors, q = fp8_block(name, w)
    theirs = folder(tmp_path / "theirs", tensors)
    ours, again = fp8_block(name, q.weights())
    with both(folder(tmp_path / "ours", ours), theirs) as (habits, (layer,)):
        for first, last in ((0, 200), (100, 140), (199, 200)):
            np.testing.assert_array_equal(habits.source.rows(layer, 0, first, last), q.weights()[first:last])
        chunks = list(habits.source.chunks(layer, size=128 * 192))
        assert [(c.first, len(c.weights)) for c in chunks] == [(0, 128), (128, 72)]
        after = Overlay(habits.reader, list(Restorer(habits).requantise([layer])))
        assert after.read(layer.codes, 0, layer.codes.nbytes) == again.stored.tobytes()
        assert after.read(layer.scales, 0, layer.scales.nbytes) == again.scales.tobytes()


def nvfp4_2d(name, w):
    q = nvfp4.quantise(w)
    return {
        f"{name}.weight": made("U8", q.stored),
        f"{name}.weight_scale": made("F8_E4M3", q.scales),
        f"{name}.weight_scale_2": made("F32", np.asarray(q.global_scale)),
    }


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_precisions_of_the_source(tmp_path, dtype):
    words, w = bf16(48, 64)
    w = w * np.float32(0.25)
    stored = {"BF16": narrow_bf16(w), "F16": w.astype(np.float16), "F32": w}[dtype]
    name = "model.layers.0.self_attn.o_proj"
    theirs = folder(tmp_path / "theirs", {f"{name}.weight": made(dtype, stored)})
    value = stored.astype(np.float32) if dtype == "F16" else w
    with both(folder(tmp_path / "ours", nvfp4_2d(name, value)), theirs) as (habits, (layer,)):
        np.testing.assert_array_equal(widen(habits.source.rows(layer, 0, 5, 17)), value[5:17])
        assert habits.recipe(layer).share == 1.0
    assert words.shape == w.shape


def test_a_source_that_is_not_finite(tmp_path):
    """NaN in another row is no obstacle to a block; in the block, or for the whole layer, it is named."""
    words, w = bf16(48, 64)
    name = "model.layers.0.self_attn.o_proj"
    ours = folder(tmp_path / "ours", nvfp4_2d(name, w))
    words[40, 3] = 0x7FC0
    theirs = folder(tmp_path / "theirs", {f"{name}.weight": made("BF16", words)})
    with both(ours, theirs) as (habits, (layer,)):
        restorer = Restorer(habits)
        with pytest.raises(RepairError, match=r"o_proj\.weight: the source cannot be used: .*\[40, 3\]: nan"):
            list(restorer.requantise([layer]))
        with pytest.raises(RepairError, match=r"o_proj\.weight: cannot be made from the source"):
            list(restorer.blocks(layer, [160]))
        pieces = list(restorer.blocks(layer, [159, 161]))
        assert all(habits.reader.read(p.ref, p.at, len(p.new)) == p.new for p in pieces)


def test_places_outside_and_layouts_without_blocks(tmp_path):
    words, w = bf16(48, 64)
    name = "model.layers.0.self_attn.o_proj"
    theirs = folder(tmp_path / "theirs", {f"{name}.weight": made("BF16", words)})
    with both(folder(tmp_path / "ours", nvfp4_2d(name, w)), theirs) as (habits, (layer,)):
        for places in ([192], [-1]):
            with pytest.raises(RepairError, match=r"lies outside its 192 scales"):
                list(Restorer(habits).blocks(layer, places))
        with pytest.raises(RepairError, match=r"packed codes are restored by block"):
            list(Restorer(habits).codes(layer, [0]))
        assert list(Restorer(habits).blocks(layer, [])) == []


@pytest.mark.parametrize("cut", [0, 7, 60, 400, 3000])
def test_a_truncated_source_is_an_error_not_a_weight(tmp_path, cut):
    words, w = bf16(48, 64)
    name = "model.layers.0.self_attn.o_proj"
    theirs = folder(tmp_path / "theirs", {f"{name}.weight": made("BF16", words)})
    raw = (theirs / "model.safetensors").read_bytes()
    (theirs / "model.safetensors").write_bytes(raw[:cut])
    with (
        pytest.raises((CheckpointError, RepairError)),
        both(folder(tmp_path / "ours", nvfp4_2d(name, w)), theirs) as (habits, (layer,)),
    ):
        list(Restorer(habits).requantise([layer]))


def test_nothing_there(tmp_path):
    _, w = bf16(16, 16)
    ours = folder(tmp_path / "ours", nvfp4_2d("model.layers.0.a", w))
    with pytest.raises(CheckpointError), both(ours, tmp_path / "nowhere"):
        pass


def test_memory_is_that_of_a_chunk(tmp_path):
    """A layer of 32 MB in bfloat16 is requantised and compared with less than two chunks in float32."""
    words = narrow_bf16(RNG.standard_normal((256, 8192)).astype(np.float32))
    words = np.concatenate([words] * 8)
    name = "model.layers.0.mlp.down_proj"
    theirs = folder(tmp_path / "theirs", {f"{name}.weight": made("BF16", words)})
    ours = folder(tmp_path / "ours", nvfp4_2d(name, words))
    del words
    with both(ours, theirs) as (habits, (layer,)):
        restorer = Restorer(habits)
        list(restorer.blocks(layer, [0]))  # compiles what is compiled
        layer_error(layer, habits.source, habits.reader)
        tracemalloc.start()
        written = sum(len(piece.new) for piece in restorer.requantise([layer]))
        layer_error(layer, habits.source, habits.reader)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert written == 2048 * 8192 * 9 // 16 + 4
    assert peak < 24 << 20


def test_a_norm_that_took_up_other_scales_is_not_copied(tmp_path):
    words, _ = bf16(256)
    name = "model.norm.weight"
    ours = words.copy()
    ours[[3, 200]] = 0x7FC0
    theirs = words.copy()
    for changed, fails in ((0, False), (40, True)):
        theirs[:changed] ^= 1
        first = folder(tmp_path / f"ours{changed}", {name: made("BF16", ours)})
        second = folder(tmp_path / f"theirs{changed}", {name: made("BF16", theirs)})
        with both(first, second) as (habits, _):
            ref = open_checkpoint(first).tensors[name]
            copied = float_values(ref, [200, 3], habits.source, habits.reader)
            if fails:
                with pytest.raises(RepairError, match=r"model\.norm\.weight has other values \(215 of 254"):
                    list(copied)
            else:
                new = Overlay(habits.reader, list(copied)).read(ref, 0, ref.nbytes)
                assert new == words.tobytes()


DTYPES = ["U8", "I8", "F8_E4M3", "F8_E8M0", "F32", "BF16"]
SHAPES = [
    (), (1,), (2,), (32,), (32, 64), (32, 32), (32, 4), (32, 2), (32, 1), (1, 1), (1, 64), (64, 32), (0, 64), (32, 0),
    (2, 32, 64), (2, 32, 32), (2, 4, 32), (2, 32, 4), (2, 1, 1), (2, 0, 32), (2, 32, 2, 16), (2, 32, 2), (32, 16),
    (1, 1, 1, 1),
]  # fmt: skip
LEAVES = ["weight", "weight_packed", "weight_scale", "weight_scale_2", "weight_global_scale", "weight_scale_inv"]


@pytest.mark.parametrize("seed", range(40))
def test_any_tensors_give_a_repair_or_an_error(tmp_path, seed):
    """Names as layouts have them, with any dtypes and shapes, on both sides."""
    rng = np.random.default_rng(seed)
    sides = []
    for side in ("ours", "theirs"):
        tensors = {}
        for module in (
            f"{DOT}.0.gate_proj",
            f"{DOT}.0.up_proj",
            "model.layers.0.self_attn.q_proj",
            f"{DOT}.gate_up_proj",
        ):
            for leaf in rng.choice(LEAVES, 4, replace=False):
                shape = SHAPES[rng.integers(len(SHAPES))]
                dtype = str(rng.choice(DTYPES))
                data = rng.bytes(int(np.prod(shape)) * WIDTH[dtype])
                dotted = f".{leaf}" if side == "ours" or rng.integers(2) else ""
                tensors[module + dotted] = Raw(dtype, shape, data)
        sides.append(folder(tmp_path / side, tensors))
    with both(*sides) as (habits, layers):
        for layer in layers:
            for act in (
                lambda one: list(Restorer(habits).requantise([one])),
                lambda one: list(Restorer(habits).blocks(one, [0])),
                lambda one: layer_error(one, habits.source, habits.reader),
                lambda one: require_source(one, habits),
                lambda one: saturation(one, habits.source, habits.reader),
            ):
                with suppress(ToolError):
                    act(layer)
