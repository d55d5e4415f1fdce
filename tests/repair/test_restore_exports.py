"""Real exports: requantising from the source gives the exporter's own bytes; damage comes back as a sound export."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from auditor.formats.base import Role
from quant.errors import RepairError
from quant.floats import widen
from quant.shrink import Search
from repair.measure_error import change, layer_error
from repair.restore_evidence import require_source, saturation
from repair.restore_pieces import Overlay, Piece, read_array
from repair.restore_recipes import Choice
from repair.source_codes import grid, stored_rows
from tests.repair.restoring import EXPORTS, assert_equal, pair

LLAMA, QWEN = "llama_nvfp4__source", "qwen3moe_nvfp4__source"
TINY, TINY_SOURCE = "llama_nvfp4_v0440_tiny_blocks", "llama_nvfp4_v0440_tiny_blocks__source"
SOUND = {
    "llama_nvfp4": (LLAMA, "amax, dynamic"),
    "llama_nvfp4_static_max": (LLAMA, "amax, dynamic"),  # no zero block in it: nothing tells the two orders apart
    "llama_nvfp4_mse": (LLAMA, "mse"),
    "llama_nvfp4_tiny_blocks": (TINY_SOURCE, "amax, dynamic"),
    "llama_nvfp4_zero_blocks": ("llama_nvfp4_zero_blocks__source", "amax, dynamic"),
    "llama_nvfp4_static_zero_blocks": ("llama_nvfp4_zero_blocks__source", "amax, static"),
    "llama_nvfp4_mse_zero_blocks": ("llama_nvfp4_zero_blocks__source", "mse"),
    "llama_w4a8_nvfp4_fp8": (LLAMA, "amax, dynamic"),
    "llama_fp8": (LLAMA, "amax, quotients in bfloat16"),
    "llama_fp8_pc_pt": (LLAMA, "amax, quotients in float32"),
    "llama_fp8_pb_wo": (LLAMA, "amax, quotients in float32"),
    "llama_mxfp4": (LLAMA, "amax, ceil, ties_down"),
    "llama_mxfp8": (LLAMA, "amax, ceil"),
    "llmc_llama_nvfp4": (LLAMA, "amax, quotients in bfloat16"),
    "llmc_llama_nvfp4_mse": (LLAMA, "mse observer, in bfloat16"),
    "llmc_llama_fp8": (LLAMA, "amax, quotients in bfloat16"),
    "llmc_llama_fp8_block": (LLAMA, "amax, quotients in bfloat16"),
    "llmc_llama_mxfp4": (LLAMA, "amax, nearest, negative"),
    "llmc_llama_mxfp8": (LLAMA, "amax, nearest"),
    "ctconv_llama_nvfp4": (LLAMA, "amax, converted"),
    "quark_llama_nvfp4": (LLAMA, "amax, dynamic"),
    "quark_llama_mxfp4": (LLAMA, "amax, nearest, negative"),
    "qwen3moe_nvfp4": (QWEN, "amax, dynamic"),
    "qwen3moe_fp8": (QWEN, "amax, quotients in bfloat16"),
}


@pytest.mark.parametrize("export", SOUND)
def test_requantising_a_sound_export_changes_nothing(export):
    source, recipe = SOUND[export]
    with pair(export, source) as both:
        after = both.requantised()
        for layer in both.recognised.layers:
            assert both.habits.recipe(layer).recipe.name == recipe
            assert_equal(layer, after, both.files)
            assert require_source(layer, both.habits).share >= 0.997


def test_mse_where_two_scales_lose_the_same():
    """The exporter adds the squares in another order; where two candidates tie to the last bit it took the other."""
    with pair("qwen3moe_nvfp4_mse", QWEN) as both:
        after, other = both.requantised(), 0
        for layer in both.recognised.layers:
            shape = grid(layer)
            ours = stored_rows(layer, after, 0, 0, shape.rows)
            theirs = stored_rows(layer, both.files, 0, 0, shape.rows)
            w = widen(both.source.rows(layer, 0, 0, shape.rows)).astype(np.float64).reshape(shape.rows, -1, 16)
            losses = [((q.weights().reshape(w.shape) - w) ** 2).sum(-1) for q in (ours, theirs)]
            differs = ours.scales != theirs.scales
            other += int(differs.sum())
            np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
            np.testing.assert_array_equal(losses[0][~differs], losses[1][~differs])
        assert other <= 2  # 1 of 1 000 layers' blocks; the rest are equal


OBSERVED = "llmc_llama_nvfp4_mse"


def test_a_range_search_found_in_the_bytes_alone():
    """The config names llm-compressor's observer; without it, and when amax is asked for, the bytes speak."""
    with pair(OBSERVED, LLAMA) as both:
        assert both.source.observers == (Search(),)
        both.source.observers = ()
        layer = both.layer("o_proj")
        found = both.habits.recipe(layer)
        assert (found.recipe.name, found.share) == ("mse observer, in bfloat16", 1.0)
    with pair(OBSERVED, LLAMA, Choice.AMAX) as both:
        assert both.habits.recipe(both.layer("o_proj")).share < 0.9


def test_least_squares_asked_of_an_amax_export_are_the_sweeps():
    """No range search made it: the plan's recipe is the sweep, and it loses less than the export."""
    with pair("llmc_llama_nvfp4", LLAMA, Choice.MSE) as both:
        layer = both.layer("1.self_attn.o_proj")
        assert both.habits.recipe(layer).recipe.name == "mse, quotients in bfloat16"
        told = change(layer, both.source, both.files, both.restorer.requantise([layer]))
        assert told.after.mse < 0.8 * told.before.mse


def test_a_choice_does_not_change_whose_source_it_is():
    """Asked for amax where a range search was at work, and a global scale lost: the source is still its own."""
    with pair(OBSERVED, LLAMA, Choice.AMAX) as both:
        layer = both.layer("o_proj")
        both.habits.reader = Overlay(both.files, [Piece(layer.parts[Role.GLOBAL], 0, np.float32(np.nan).tobytes())])
        assert require_source(layer, both.habits).share == 1.0


def test_single_blocks_of_a_range_search():
    """Under a global scale made from a shrunk amax no block counts as saturated: lost blocks alone come back."""
    with pair(OBSERVED, LLAMA) as both:
        for layer in both.recognised.layers:
            own = both.habits.own(both.habits.recipe(layer).recipe, layer)
            assert not saturation(layer, both.source, both.files, own).count
            hurt = Overlay(both.files, [Piece(layer.codes, 24, b"\x77" * 8), Piece(layer.scales, 3, b"\x7f")])
            both.habits.reader = hurt
            pieces = list(both.restorer.blocks(layer, [3]))
            assert sum(len(p.new) for p in pieces) == 9
            assert_equal(layer, Overlay(hurt, pieces), both.files)


def test_four_ways_to_lose_a_block():
    """0x77 under NaN, codes 0 under NaN, others under NaN, a scale of 0: each comes back bit for bit."""
    with pair("llama_nvfp4", LLAMA) as both:
        for name in ("1.self_attn.k_proj", "0.mlp.down_proj"):
            layer = both.layer(name)
            damage, places = [], [3, 4, 90, 511]
            for place, (codes, scale) in zip(places, ((0x77, 0x7F), (0, 0xFF), (0x12, 0x7F), (0x77, 0)), strict=True):
                damage += [
                    Piece(layer.codes, place * 8, bytes([codes]) * 8),
                    Piece(layer.scales, place, bytes([scale])),
                ]
            hurt = Overlay(both.files, damage)
            both.habits.reader = hurt
            pieces = list(both.restorer.blocks(layer, reversed(places)))
            assert sum(len(p.new) for p in pieces) == 4 * 9  # nothing but these blocks
            assert_equal(layer, Overlay(hurt, pieces), both.files)
            told = change(layer, both.source, hurt, pieces)
            assert np.isnan(told.before.mse)
            assert told.after == layer_error(layer, both.source, both.files)


@pytest.mark.parametrize(
    ("export", "source", "sound", "name"),
    [
        ("llama_nvfp4_v0440_amax_small_legacycast", LLAMA, "llama_nvfp4", "o_proj"),
        (TINY, TINY_SOURCE, "llama_nvfp4_tiny_blocks", "down_proj"),
        ("qwen3moe_nvfp4_dead_experts", QWEN, "qwen3moe_nvfp4", "experts.0.gate_proj"),
        ("qwen3moe_nvfp4_dead_experts", QWEN, "qwen3moe_nvfp4", "experts.0.up_proj"),
    ],
)  # fmt: skip
def test_a_damaged_layer_becomes_what_the_sound_export_has(export, source, sound, name):
    with pair(export, source) as both, pair(sound, source) as good:
        layer = both.layer(name)
        pieces = list(both.restorer.requantise(both.habits.members(layer)))
        wanted = good.layer(layer.name)
        for ours, theirs in zip(_bytes(layer, Overlay(both.files, pieces)), _bytes(wanted, good.files), strict=True):
            assert ours == theirs
        told = change(layer, both.source, both.files, pieces)
        assert not told.before.sqnr > told.after.sqnr
        assert told.after == layer_error(wanted, good.source, good.files)


def _bytes(layer, reader):
    return [
        reader.read(ref, 0, ref.nbytes) for role in (Role.CODES, Role.SCALES, Role.GLOBAL) if (ref := layer.get(role))
    ]


@pytest.mark.parametrize("places", [[12], range(16)])
def test_single_underflown_blocks_come_back_under_the_stored_global_scale(places):
    """modelopt 0.44 wrote scale 0 over codes 7: the three blocks become those of 0.47, and no other byte moves."""
    with pair(TINY, TINY_SOURCE) as both, pair("llama_nvfp4_tiny_blocks", TINY_SOURCE) as good:
        layer, wanted = both.layer("down_proj"), good.layer("down_proj")
        zero = np.flatnonzero(read_array(both.files, layer.scales, 0, layer.scales.nbytes) == 0)
        assert len(zero) == 3
        pieces = list(both.restorer.blocks(layer, [*zero, *places]))
        assert _bytes(layer, Overlay(both.files, pieces)) == _bytes(wanted, good.files)


def test_an_all_zero_weight():
    """The exporter divided 0 by 0; the layer becomes zeros under finite scales, and zero is exact."""
    with pair("llama_nvfp4_zero_weight", "llama_nvfp4_zero_weight__source") as both:
        layer = both.layer("o_proj")
        pieces = list(both.restorer.requantise([layer]))
        told = change(layer, both.source, both.files, pieces)
        assert not np.isfinite(told.before.mse) or told.before.mse > 0
        assert (told.after.mse, told.after.largest) == (0.0, 0.0)
        codes, scales, wide = _bytes(layer, Overlay(both.files, pieces))
        assert set(codes) == {0}
        assert set(scales) == {0x38}
        assert wide == np.float32(1).tobytes()
        with pytest.raises(RepairError, match="no positive number"):
            list(both.restorer.blocks(layer, [0]))


def test_a_zero_expert_keeps_its_neighbours():
    with pair("qwen3moe_nvfp4_zero_expert", "qwen3moe_nvfp4_zero_expert__source") as both:
        for members in both.sets():
            pieces = list(both.restorer.requantise(members))
            for layer in members:
                told = change(layer, both.source, both.files, pieces)
                if ".3." in layer.name:
                    assert told.after.mse == 0
                else:
                    assert_equal(layer, Overlay(both.files, pieces), both.files)


def test_element_wise_maximum_of_two_layers_scales():
    """D34: gate and up under the maximum of both scales; requantising by MSE gives the sound export again."""
    with pair("qwen3moe_nvfp4_mse", QWEN) as both:
        members = both.habits.members(both.layer("experts.1.gate_proj"))
        sound = both.requantised()
        scales = [np.frombuffer(sound.read(m.scales, 0, m.scales.nbytes), np.uint8) for m in members]
        hurt = Overlay(both.files, [Piece(m.scales, 0, np.maximum(*scales).tobytes()) for m in members])
        both.habits.reader = hurt
        pieces = list(both.restorer.requantise(members))
        for layer in members:
            assert_equal(layer, Overlay(hurt, pieces), sound)
            told = change(layer, both.source, hurt, pieces)
            assert told.after.mse < told.before.mse / 2


def test_hidden_saturation_is_proven():
    with pair("llama_nvfp4_v0440_amax_small_legacycast", LLAMA) as both:
        layer = both.layer("o_proj")
        found = saturation(layer, both.source, both.files)
        nan = np.flatnonzero(read_array(both.files, layer.scales, 0, layer.scales.nbytes) == 0x7F)
        assert found.count == 430 == len(nan)
        assert list(found.first) == nan[:8].tolist()
        assert found.worst > 464 / 448
        mended = Overlay(both.files, list(both.restorer.requantise([layer])))
        assert saturation(layer, both.source, mended).count == 0
    with pair("llama_nvfp4", LLAMA) as both:
        assert all(not saturation(layer, both.source, both.files).count for layer in both.recognised.layers)


def test_weights_that_were_changed_before_quantisation_are_refused():
    with pair("llama_nvfp4_awq_lite", LLAMA) as both:
        for layer in both.recognised.layers:
            with pytest.raises(RepairError, match=r"changed before quantisation"):
                require_source(layer, both.habits)
    with pair("qwen3moe_nvfp4", "qwen3moe_nvfp4_zero_expert__source") as both, pytest.raises(RepairError):
        require_source(both.layer("experts.0.gate_proj"), both.habits)


def test_a_chosen_method_is_used():
    """Asked for MSE, an amax export gets scales with less error; asked for amax, an MSE export gets amax's."""
    with pair("llama_nvfp4", LLAMA, Choice.MSE) as both:
        layer = both.layer("1.self_attn.o_proj")
        told = change(layer, both.source, both.files, both.restorer.requantise([layer]))
        assert told.after.mse < 0.8 * told.before.mse
    with pair("llama_nvfp4_mse", LLAMA, Choice.AMAX) as both, pair("llama_nvfp4", LLAMA) as good:
        layer = both.layer("1.self_attn.o_proj")
        after = Overlay(both.files, list(both.restorer.requantise([layer])))
        assert _bytes(layer, after) == _bytes(good.layer("1.self_attn.o_proj"), good.files)


def test_fp8_codes_come_back_one_by_one():
    with pair("llama_fp8", LLAMA) as both:
        layer = both.layer("k_proj")
        places = [0, 5, 129, 8191]
        hurt = Overlay(both.files, [Piece(layer.codes, at, b"\x7f") for at in places])
        both.habits.reader = hurt
        pieces = list(both.restorer.codes(layer, places))
        assert sum(len(p.new) for p in pieces) == len(places)
        assert_equal(layer, Overlay(hurt, pieces), both.files)


def test_nan_codes_do_not_speak_against_the_source():
    """Every ninth FP8 code is NaN: the others say whose source it is, and all come back."""
    with pair("llama_fp8", LLAMA) as both:
        layer = both.layer("k_proj")
        places = range(0, layer.codes.nbytes, 9)
        hurt = Overlay(both.files, [Piece(layer.codes, at, b"\xff") for at in places])
        both.habits.reader = hurt
        assert require_source(layer, both.habits).share == 1.0
        assert_equal(layer, Overlay(hurt, list(both.restorer.codes(layer, places))), both.files)


@pytest.mark.parametrize("turned", [False, True])
def test_fused_experts_of_a_real_export(tmp_path, turned):
    """gpt-oss has no source here: its own weights, as float32 in both orientations, must give it back."""
    export = EXPORTS.parent / "corpus" / "gptoss_nvfp4"
    with pair(export, LLAMA) as alone:
        tensors = {}
        for layer in alone.recognised.layers:
            shape = grid(layer)
            w = np.stack([stored_rows(layer, alone.files, e, 0, shape.rows).weights() for e in range(shape.experts)])
            fused = len(layer.codes.shape) == 3
            name = layer.name if fused else f"{layer.name}.weight"
            tensors[name] = np.ascontiguousarray(w.swapaxes(1, 2) if turned else w) if fused else w[0]
    save_file(tensors, tmp_path / "model.safetensors")
    with pair(export, tmp_path) as both:
        after = both.requantised()
        for layer in both.recognised.layers:
            assert layer_error(layer, both.source, both.files).squared == 0
            assert layer_error(layer, both.source, after).squared == 0
            assert require_source(layer, both.habits).share == 1
