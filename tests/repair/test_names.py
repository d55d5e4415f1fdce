"""Names and slices: whatever layout the source has, the rows of a layer are the rows it was made from."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from auditor.checkpoint import Checkpoint
from auditor.layer import recognise
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.names_spelling import spellings
from repair.source import Source
from repair.source_codes import grid

E, INNER, H = 3, 32, 96  # experts, inner, hidden: no two of INNER, 2 INNER, H are equal
RNG = np.random.default_rng(7)


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


GATE, UP, DOWN = weight(E, INNER, H), weight(E, INNER, H), weight(E, H, INNER)
JOINED = np.concatenate([GATE, UP], 1)
ALTERNATING = np.stack([GATE, UP], 2).reshape(E, 2 * INNER, H)


def nvfp4(name, rows, columns):
    """A 2-D NVFP4 layer's tensors."""
    return [
        TensorRef(f"{name}.weight", "U8", (rows, columns // 2), "a", 0, rows * columns // 2),
        TensorRef(f"{name}.weight_scale", "F8_E4M3", (rows, columns // 16), "a", 0, rows * columns // 16),
        TensorRef(f"{name}.weight_scale_2", "F32", (), "a", 0, 4),
    ]


def nvfp4_3d(name, experts, rows, columns):
    """A fused 3-D NVFP4 layer's tensors, transposed as exporters store them."""
    size = experts * rows * columns
    return [
        TensorRef(name, "U8", (experts, columns // 2, rows), "a", 0, size // 2),
        TensorRef(f"{name}_weight_scale", "F8_E4M3", (experts, columns // 16, rows), "a", 0, size // 16),
        TensorRef(f"{name}_weight_scale_2", "F32", (), "a", 0, 4),
    ]


@contextmanager
def opened(tmp_path: Path, tensors, ours, kind="llama"):
    """The source written, and the layers of ours, by name."""
    save_file({name: np.ascontiguousarray(w) for name, w in tensors.items()}, tmp_path / "model.safetensors")
    found = recognise(ours)
    checkpoint = Checkpoint(tmp_path, "ours", whole=True, config={"model_type": kind})
    with Source(tmp_path, checkpoint, found) as source:
        yield source, {layer.name: layer for layer in found.layers}


def rows(source, layer, expert=0):
    """All rows of an expert, read in odd pieces."""
    height = grid(layer).rows
    cuts = [0, *sorted({1, 5, 17, height // 2} & set(range(1, height))), height]
    parts = [source.rows(layer, expert, a, b) for a, b in pairwise(cuts)]
    return np.concatenate(parts)


DOT = "model.layers.0.mlp.experts"
SOURCES = {
    "each expert": {
        f"{DOT}.{e}.{leaf}.weight": w[e]
        for e in range(E)
        for leaf, w in (("gate_proj", GATE), ("up_proj", UP), ("down_proj", DOWN))
    },
    "mixtral": {
        f"model.layers.0.block_sparse_moe.experts.{e}.{leaf}.weight": w[e]
        for e in range(E)
        for leaf, w in (("w1", GATE), ("w3", UP), ("w2", DOWN))
    },
    "3-D, rows first": {f"{DOT}.gate_up_proj": JOINED, f"{DOT}.down_proj": DOWN},
    "3-D, columns first": {f"{DOT}.gate_up_proj": JOINED.swapaxes(1, 2), f"{DOT}.down_proj": DOWN.swapaxes(1, 2)},
    "3-D, with .weight": {f"{DOT}.gate_up_proj.weight": JOINED, f"{DOT}.down_proj.weight": DOWN},
    "3-D, apart": {f"{DOT}.gate_proj": GATE, f"{DOT}.up_proj": UP, f"{DOT}.down_proj": DOWN},
    "3-D, another prefix": {
        "model.language_model.layers.0.mlp.experts.gate_up_proj": JOINED,
        "model.language_model.layers.0.mlp.experts.down_proj": DOWN,
    },
}


@pytest.mark.parametrize("where", SOURCES)
@pytest.mark.parametrize("style", ["model.layers.0.mlp.experts.{}.", "model.layers.0.block_sparse_moe.experts.{}."])
def test_every_experts_layer(tmp_path, where, style):
    leaves = ("w1", "w3", "w2") if "sparse" in style else ("gate_proj", "up_proj", "down_proj")
    shapes = dict(zip(leaves, ((INNER, H), (INNER, H), (H, INNER)), strict=True))
    ours = [t for e in range(E) for leaf in leaves for t in nvfp4(style.format(e) + leaf, *shapes[leaf])]
    with opened(tmp_path, SOURCES[where], ours) as (source, layers):
        for e in range(E):
            for leaf, wanted in zip(leaves, (GATE, UP, DOWN), strict=True):
                np.testing.assert_array_equal(rows(source, layers[style.format(e) + leaf]), wanted[e])


@pytest.mark.parametrize("where", SOURCES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_fused_tensors(tmp_path, where, interleaved):
    if interleaved and "3-D" in where and "apart" not in where:
        tensors = {n: _alternate(w) if "gate_up" in n else w for n, w in SOURCES[where].items()}
    else:
        tensors = SOURCES[where]
    ours = nvfp4_3d(f"{DOT}.gate_up_proj", E, 2 * INNER, H)
    with opened(tmp_path, tensors, ours, "gpt_oss" if interleaved else "llama4_text") as (source, layers):
        (layer,) = layers.values()
        for e in range(E):
            np.testing.assert_array_equal(rows(source, layer, e), (ALTERNATING if interleaved else JOINED)[e])


def _alternate(w):
    return ALTERNATING if w.shape[1] == 2 * INNER else ALTERNATING.swapaxes(1, 2)


def test_interleaved_source_of_split_experts(tmp_path):
    ours = nvfp4(f"{DOT}.1.gate_proj", INNER, H) + nvfp4(f"{DOT}.2.up_proj", INNER, H)
    tensors = {f"{DOT}.gate_up_proj": ALTERNATING.swapaxes(1, 2)}
    with opened(tmp_path, tensors, ours, "gpt_oss") as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[f"{DOT}.1.gate_proj"]), GATE[1])
        np.testing.assert_array_equal(rows(source, layers[f"{DOT}.2.up_proj"]), UP[2])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("square", ["gate_up_proj", "down_proj"])
def test_square_slabs_are_turned_as_the_other_projection_is(tmp_path, turned, square):
    hidden = 64
    inner = 32 if square == "gate_up_proj" else 64
    both, down = weight(2, 2 * inner, hidden), weight(2, hidden, inner)
    tensors = {f"{DOT}.gate_up_proj": both, f"{DOT}.down_proj": down}
    if turned:
        tensors = {name: w.swapaxes(1, 2) for name, w in tensors.items()}
    ours = nvfp4(f"{DOT}.1.up_proj", inner, hidden) + nvfp4(f"{DOT}.1.down_proj", hidden, inner)
    with opened(tmp_path, tensors, ours) as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[f"{DOT}.1.up_proj"]), both[1, inner:])
        np.testing.assert_array_equal(rows(source, layers[f"{DOT}.1.down_proj"]), down[1])


def test_square_slabs_alone_are_ambiguous(tmp_path):
    tensors = {f"{DOT}.down_proj": weight(2, 64, 64)}
    message = refused(tmp_path, tensors, nvfp4(f"{DOT}.1.down_proj", 64, 64), f"{DOT}.1.down_proj")
    assert message == f"{DOT}.1.down_proj.weight: ambiguous: the slabs of the source's {DOT}.down_proj are square"


def test_fused_matrices(tmp_path):
    """qkv and gate_up of the source cut by the heights of ours; ours joined from the source's parts."""
    qkv, gate_up = weight(64 + 32 + 32, H), weight(2 * 40, H)
    at = "model.layers.0"
    parts = {"q_proj": (0, 64), "k_proj": (64, 96), "v_proj": (96, 128)}
    ours = nvfp4(f"{at}.mlp.gate_proj", 40, H) + nvfp4(f"{at}.mlp.up_proj", 40, H)
    for leaf, (a, b) in parts.items():
        ours += nvfp4(f"{at}.self_attn.{leaf}", b - a, H)
    tensors = {f"{at}.self_attn.qkv_proj.weight": qkv, f"{at}.mlp.gate_up_proj.weight": gate_up}
    (tmp_path / "a").mkdir()
    with opened(tmp_path / "a", tensors, ours) as (source, layers):
        for leaf, (a, b) in parts.items():
            np.testing.assert_array_equal(rows(source, layers[f"{at}.self_attn.{leaf}"]), qkv[a:b])
        np.testing.assert_array_equal(rows(source, layers[f"{at}.mlp.up_proj"]), gate_up[40:])
    split = {f"{at}.self_attn.{leaf}.weight": qkv[a:b] for leaf, (a, b) in parts.items()}
    (tmp_path / "b").mkdir()
    with opened(tmp_path / "b", split, nvfp4(f"{at}.self_attn.qkv_proj", 128, H)) as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[f"{at}.self_attn.qkv_proj"]), qkv)


PREFIXES = ["model", "model.language_model", "language_model.model", "language_model", "model.text_model"]


@pytest.mark.parametrize("mine", PREFIXES)
@pytest.mark.parametrize("theirs", PREFIXES)
def test_prefixes_of_the_text_model(tmp_path, mine, theirs):
    """A vision tower with the same layer names and shapes beside it is never taken."""
    w, vision = weight(64, H), weight(64, H)
    leaf = "layers.3.self_attn.o_proj"
    tensors = {f"{theirs}.{leaf}.weight": w, f"model.vision_tower.encoder.{leaf}.weight": vision}
    ours = nvfp4(f"{mine}.{leaf}", 64, H) + nvfp4(f"vision_tower.encoder.{leaf}", 64, H)
    with opened(tmp_path, tensors, ours) as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[f"{mine}.{leaf}"]), w)
        np.testing.assert_array_equal(rows(source, layers[f"vision_tower.encoder.{leaf}"]), vision)


def refused(tmp_path, tensors, ours, name):
    with opened(tmp_path, tensors, ours) as (source, layers), pytest.raises(RepairError) as error:
        rows(source, layers[name])
    return str(error.value)


def test_what_is_not_there_is_refused(tmp_path):
    mtp, leaf = "mtp.layers.0.mlp.up_proj", "layers.0.mlp.up_proj"
    tensors = {f"model.{leaf}.weight": weight(40, H)}
    message = refused(tmp_path, tensors, nvfp4(mtp, 40, H) + nvfp4(f"model.{leaf}", 40, H), mtp)
    assert message == "mtp.layers.0.mlp.up_proj.weight: the source has no tensor of this name or of one that it maps to"


def test_a_wrong_shape_names_both_sides(tmp_path):
    name = "model.layers.0.mlp.up_proj"
    message = refused(tmp_path, {f"{name}.weight": weight(40, H)}, nvfp4(name, 48, H), name)
    assert message == f"{name}.weight: needs a source of shape [48, 96], but {name}.weight has [40, 96]"
    other = "model.language_model.layers.0.mlp.up_proj"
    message = refused(tmp_path, {f"{other}.weight": weight(40, H)}, nvfp4(name, 48, H), name)
    assert message == f"{name}.weight: needs a source of shape [48, 96], but {other}.weight has [40, 96]"


def test_two_candidates_are_ambiguous(tmp_path):
    tensors = {f"{tower}.layers.0.mlp.up_proj.weight": weight(48, H) for tower in ("left", "right")}
    message = refused(tmp_path, tensors, nvfp4("model.layers.0.mlp.up_proj", 48, H), "model.layers.0.mlp.up_proj")
    assert "ambiguous: the source's left.layers.0.mlp.up_proj.weight and right.layers.0.mlp.up_proj.weight" in message


def test_too_few_experts(tmp_path):
    name = f"{DOT}.3.up_proj"
    message = refused(tmp_path, SOURCES["3-D, rows first"], nvfp4(name, INNER, H), name)
    assert message == f"{name}.weight: needs a source of shape [64, 96], but {DOT}.gate_up_proj has [3, 64, 96]"
    name = f"{DOT}.gate_up_proj"
    message = refused(tmp_path, SOURCES["each expert"], nvfp4_3d(name, 4, 2 * INNER, H), name)
    assert "do not make up its 64 rows" in message


OTHER_WORDS = {
    "granite": ("model.layers.0.block_sparse_moe.input_linear", "model.layers.0.block_sparse_moe.output_linear"),
    "aria": (f"{DOT}.fc1", f"{DOT}.fc2"),
}


@pytest.mark.parametrize("words", OTHER_WORDS)
@pytest.mark.parametrize("turned", [False, True])
def test_fused_experts_under_the_names_of_the_hub(tmp_path, words, turned):
    """Each expert of ours, and our fused tensor, from a 3-D tensor that is called something else; and back."""
    names = OTHER_WORDS[words]
    tensors = {f"{name}.weight": w for name, w in zip(names, (JOINED, DOWN), strict=True)}
    if turned:
        tensors = {name: w.swapaxes(1, 2) for name, w in tensors.items()}
    head = "model.layers.0.block_sparse_moe.experts" if words == "granite" else DOT
    ours = nvfp4(f"{head}.1.gate_proj", INNER, H) + nvfp4(f"{head}.2.down_proj", H, INNER)
    ours += nvfp4_3d(f"{head}.gate_up_proj", E, 2 * INNER, H)
    with opened(tmp_path, tensors, ours) as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[f"{head}.1.gate_proj"]), GATE[1])
        np.testing.assert_array_equal(rows(source, layers[f"{head}.2.down_proj"]), DOWN[2])
        np.testing.assert_array_equal(rows(source, layers[f"{head}.gate_up_proj"], 1), JOINED[1])


def test_gate_and_up_in_three_dimensions_each(tmp_path):
    at = "model.layers.0.moe"
    tensors = {f"{at}.gate_proj.weight": GATE, f"{at}.up_proj.weight": UP, f"{at}.down_proj.weight": DOWN}
    ours = nvfp4_3d(f"{DOT}.gate_up_proj", E, 2 * INNER, H) + nvfp4_3d(f"{DOT}.down_proj", E, H, INNER)
    with opened(tmp_path, tensors, ours) as (source, layers):
        for e in range(E):
            np.testing.assert_array_equal(rows(source, layers[f"{DOT}.gate_up_proj"], e), JOINED[e])
            np.testing.assert_array_equal(rows(source, layers[f"{DOT}.down_proj"], e), DOWN[e])


STACK = "transformer.blocks.0.ffn.experts.mlp"


@pytest.mark.parametrize("turned", [False, True])
def test_experts_one_below_the_other(tmp_path, turned):
    """DBRX: [experts * inner, hidden] of which modelopt makes one layer for each expert, either way round."""
    tensors = {f"{STACK}.{leaf}": w.reshape(E * INNER, H) for leaf, w in (("w1", GATE), ("v1", UP))}
    tensors[f"{STACK}.w2"] = np.ascontiguousarray(DOWN.swapaxes(1, 2)).reshape(E * INNER, H)
    shape = (H, INNER) if turned else (INNER, H)
    ours = [t for leaf in ("w1", "v1") for e in range(E) for t in nvfp4(f"{STACK}.{leaf}_linear.{e}", *shape)]
    ours += [t for e in range(E) for t in nvfp4(f"{STACK}.w2_linear.{e}", *shape[::-1])]
    with opened(tmp_path, tensors, ours) as (source, layers):
        for e in range(E):
            for leaf, w in (("w1", GATE[e]), ("v1", UP[e]), ("w2", DOWN[e])):
                wanted = w.T if turned else w
                np.testing.assert_array_equal(rows(source, layers[f"{STACK}.{leaf}_linear.{e}"]), wanted)


def test_stacked_experts_that_do_not_fit(tmp_path):
    name = f"{STACK}.w1_linear"
    tensors = {f"{STACK}.w1": weight(2 * 64, 64), f"{STACK}.v1": weight(2 * INNER, H)}
    ours = nvfp4(f"{name}.1", 64, 64) + nvfp4(f"{STACK}.v1_linear.2", INNER, H)
    message = refused(tmp_path, tensors, ours, f"{name}.1")
    assert message == f"{name}.1.weight: ambiguous: an expert of the source's {STACK}.w1 is square"
    message = refused(tmp_path, tensors, ours, f"{STACK}.v1_linear.2")
    assert message == f"{STACK}.v1_linear.2.weight: needs a source of shape [32, 96], but {STACK}.v1 has [64, 96]"


PAIRS = [
    ("model.layers.0.attn.wq_a", "model.layers.0.self_attn.q_a_proj"),
    ("layers.0.attn.wq_b", "model.layers.0.self_attn.q_b_proj"),
    ("layers.0.attn.wkv", "model.layers.0.self_attn.kv_proj"),
    ("layers.0.attn.compressor.wgate", "model.layers.0.self_attn.compressor.gate_proj"),
    ("layers.0.attn.indexer.compressor.wkv", "model.layers.0.self_attn.compressor.indexer.kv_proj"),
    ("layers.0.attn.indexer.wq_b", "model.layers.0.self_attn.compressor.indexer.q_b_proj"),
    ("layers.0.attn.wo_b", "model.layers.0.self_attn.o_b_proj"),
    ("layers.0.ffn.shared_experts.w2", "model.layers.0.mlp.shared_experts.down_proj"),
    ("model.layers.0.mlp.shared_mlp.up_proj", "model.layers.0.mlp.shared_experts.up_proj"),
    ("model.layers.0.share_expert.up_proj", "model.layers.0.shared_experts.up_proj"),
    ("model.layers.0.block_sparse_moe.router.layer", "model.layers.0.block_sparse_moe.router"),
    ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.router"),
    ("model.layers.0.mlp.router.gate", "model.layers.0.mlp.gate"),
    ("backbone.layers.0.mixer.in_proj", "model.layers.0.mixer.in_proj"),
    ("model.layers.0.self_attn.index_q_proj", "model.layers.0.self_attn.indexer.q_proj"),
    ("embed_out", "lm_head"),
]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_words_that_stand_for_one_another(tmp_path, pair, back):
    mine, theirs = pair[::-1] if back else pair
    w = weight(48, H)
    with opened(tmp_path, {f"{theirs}.weight": w}, nvfp4(mine, 48, H)) as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[mine]), w)


BLENDED = [
    ("gpt_neox.layers.0.attention", "query_key_value", "q_proj"),
    ("transformer.h.0.attn", "c_attn", "k_proj"),
    ("transformer.blocks.0.attn", "Wqkv", "v_proj"),
    ("model.layers.0.attention", "wqkv", "q_proj"),
    ("model.layers.0.linear_attn", "in_proj_qkvz", "in_proj_qkv"),
    ("model.layers.0.linear_attn", "in_proj_ba", "in_proj_b"),
]


@pytest.mark.parametrize(("at", "whole", "part"), BLENDED)
def test_rows_in_an_order_that_only_the_model_knows(tmp_path, at, whole, part):
    """Under one name they are the same rows; cut or joined they are refused, with the reason."""
    w = weight(96, H)
    with opened(tmp_path, {f"{at}.{whole}.weight": w}, nvfp4(f"{at}.{whole}", 96, H)) as (source, layers):
        np.testing.assert_array_equal(rows(source, layers[f"{at}.{whole}"]), w)
    message = refused(tmp_path, {f"{at}.{whole}.weight": w}, nvfp4(f"{at}.{part}", 32, H), f"{at}.{part}")
    assert f"ambiguous: the source has {at}.{whole}.weight; only the model knows the order of rows in" in message
    message = refused(tmp_path, {f"{at}.{part}.weight": w[:32]}, nvfp4(f"{at}.{whole}", 96, H), f"{at}.{whole}")
    assert f"ambiguous: the source has {at}.{part}.weight; only the model knows the order of rows in it" in message


def test_a_name_has_few_spellings():
    name = ".".join(["mlp", "gate_proj", "shared_experts", "attn"] * 200)
    assert len(list(spellings(name))) <= 1024
