"""Every kind of model by every recipe in both layouts: names, bytes and declaration, against the exporters' own."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import auditor
from auditor.checkpoint import open_checkpoint
from auditor.finding import Severity
from quant import nvfp4
from quant.backend import Backend
from quant.errors import RepairError
from quant.floats import Word
from quant.scheme import NVFP4, NVFP4_DIVIDE
from repair.make import recipefile
from repair.make.activations import Taken
from repair.make.layouts import Layout
from repair.make.recipe import PRESETS, Inputs, KvCache, Method, Recipe
from repair.make.requantise import plan
from repair.make.sources import Sources
from tests.raw import raw
from tests.repair.make.requantising import EXPORTS, declared, requantise, tensors
from tests.repair.make.unquantised import INNER, KINDS, E, H, Model, source

MODELOPT, CT = Layout.MODELOPT, Layout.COMPRESSED_TENSORS
LLAMA, QWEN = EXPORTS / "llama_nvfp4__source", EXPORTS / "qwen3moe_nvfp4__source"


def expected(model: Model, module: str, recipe: Recipe, word: Word) -> nvfp4.Quantised:
    """By the definition in numpy, from the matrix of the test's own making."""
    members = next((some for some in model.sets if module in some), (module,))
    amax = max(np.abs(model.matrices[name]).max() for name in members)
    mse = recipe.method is Method.MSE
    return nvfp4.quantise(
        model.matrices[module],
        amax,
        method=nvfp4.Method.SWEEP if mse else nvfp4.Method.DYNAMIC,
        scheme=NVFP4 if recipe.layout is MODELOPT else NVFP4_DIVIDE,
        word=Word.FLOAT32 if mse or recipe.layout is MODELOPT else word,
        backend=Backend.REFERENCE,
    )


def assert_made(model: Model, root: Path, recipe: Recipe, word: Word = Word.BFLOAT16) -> set[str]:
    """The selected modules' bytes; returns which they are."""
    made = tensors(root)
    ct = recipe.layout is CT
    found = set()
    for module in model.matrices:
        codes, scale, wide = (
            f"{module}.{leaf}"
            for leaf in (
                "weight_packed" if ct else "weight",
                "weight_scale",
                "weight_global_scale" if ct else "weight_scale_2",
            )
        )
        if scale not in made:
            continue
        found.add(module)
        want = expected(model, module, recipe, word)
        assert (made[codes].dtype, made[scale].dtype, made[wide].dtype) == ("U8", "F8_E4M3", "F32")
        assert made[wide].shape == ((1,) if ct else ())
        np.testing.assert_array_equal(made[scale].array(), want.scales, err_msg=module)
        np.testing.assert_array_equal(made[codes].array(), want.stored, err_msg=module)
        assert made[wide].data == np.asarray(want.global_scale, "<f4").tobytes()
    return found


@pytest.mark.parametrize(("kind", "name", "layout"), list(product(KINDS, recipefile.shipped(), Layout)))
def test_every_recipe_on_every_model_scans_clean(kind: str, name: str, layout: Layout, tmp_path: Path):
    model = source(kind)
    recipe = dataclasses.replace(recipefile.load(name), layout=layout)
    if kind == "llama" and "experts" in name:
        with pytest.raises(RepairError, match="nothing to requantize"):
            requantise(model.write(tmp_path / "src"), tmp_path / "new", recipe)
        return
    shards = [f"model-{n}.safetensors" for n in range(1, 4)]
    for activations in (Inputs.FROM, Inputs.ONE):
        target = tmp_path / activations.value
        requantise(
            model.write(tmp_path / f"src-{activations}", shards),
            target,
            dataclasses.replace(recipe, activations=activations),
            jobs=2,
        )
        found = [f for f in auditor.scan(target).findings if f.severity is not Severity.INFO]
        assert not found, found[0]
        config = declared(target)
        if layout is MODELOPT:
            assert config["quant_algo"] == ("NVFP4" if activations is Inputs.ONE else "W4A16_NVFP4")
        static = any("input" in leaf.rpartition(".")[2] for leaf in tensors(target) if "layernorm" not in leaf)
        assert static == (activations is Inputs.ONE)
        assert_made(model, target, recipe)


@pytest.mark.parametrize(("layout", "method", "dtype"), list(product(Layout, Method, ("BF16", "F16", "F32"))))
def test_all_linears_are_made_whatever_shard_a_set_lies_in(layout: Layout, method: Method, dtype: str, tmp_path: Path):
    model = source("qwen3moe", dtype)
    recipe = Recipe("t", method=method, layout=layout)
    words = {"BF16": Word.BFLOAT16, "F16": Word.FLOAT16, "F32": Word.FLOAT32}
    root = model.write(tmp_path / "src", ["a.safetensors", "b.safetensors"])
    _, made = requantise(root, tmp_path / "new", recipe)
    assert assert_made(model, tmp_path / "new", recipe, words[dtype]) == set(model.matrices)
    assert sorted(row.tensor for row in made.rows) == sorted(model.matrices)


@pytest.mark.parametrize("kind", ["llama4", "gptoss"])
def test_fused_experts_of_the_modelopt_layout(kind: str, tmp_path: Path):
    """One tensor, packed along the inputs, one scale for all experts; as the exporter's names and shapes are."""
    model = source(kind)
    requantise(model.write(tmp_path / "src"), tmp_path / "new", Recipe("t"))
    made = tensors(tmp_path / "new")
    at = "model.layers.1." + ("feed_forward" if kind == "llama4" else "mlp") + ".experts"
    for leaf, parts, rows, columns in (
        ("gate_up_proj", ("gate_proj", "up_proj"), 2 * INNER, H),
        ("down_proj", ("down_proj",), H, INNER),
    ):
        codes, scales = made[f"{at}.{leaf}"], made[f"{at}.{leaf}_weight_scale"]
        assert codes.shape == (E, columns // 2, rows)
        assert scales.shape == (E, columns // 16, rows)
        assert made[f"{at}.{leaf}_weight_scale_2"].shape == ()
        matrices = [[model.matrices[f"{at}.{e}.{part}"] for part in parts] for e in range(E)]
        amax = max(np.abs(m).max() for some in matrices for m in some)
        for e, some in enumerate(matrices):
            whole = np.concatenate(some)
            if kind == "gptoss" and len(some) == 2:
                whole = np.stack(some, 1).reshape(rows, columns)
            want = nvfp4.quantise(whole, amax, backend=Backend.REFERENCE)
            np.testing.assert_array_equal(codes.array()[e].T, want.stored)
            np.testing.assert_array_equal(scales.array()[e].T, want.scales)
        if kind == "gptoss":
            assert made[f"{at}.{leaf}_bias"] == model.tensors[f"{at}.{leaf}_bias"]


def test_fused_experts_with_biases_become_modules_of_their_own(tmp_path: Path):
    model = source("gptoss")
    requantise(model.write(tmp_path / "src"), tmp_path / "new", Recipe("t", layout=CT))
    made = tensors(tmp_path / "new")
    for leaf, cuts in (("gate_up_proj", {"gate_proj": 0, "up_proj": 1}), ("down_proj", {"down_proj": 0})):
        bias = model.tensors[f"model.layers.0.mlp.experts.{leaf}_bias"].values()
        assert f"model.layers.0.mlp.experts.{leaf}_bias" not in made
        for e, (part, first) in product(range(E), cuts.items()):
            got = made[f"model.layers.0.mlp.experts.{e}.{part}.bias"]
            np.testing.assert_array_equal(got.values(), bias[e, first :: len(cuts)])
    assert assert_made(model, tmp_path / "new", Recipe("t", layout=CT)) == set(model.matrices)


def test_slabs_that_are_square_are_told_by_both_shapes(tmp_path: Path):
    """Gate and up [E, 2I, H] with 2I = H: the shape of down tells which axis is which."""
    for across in (False, True):
        model = source("qwen3moe_fused")
        model.config["num_hidden_layers"] = 1
        at = "model.layers.0.mlp.experts"
        rng = np.random.default_rng(1)
        values = {
            leaf: rng.standard_normal((2, *shape))
            for leaf, shape in (("gate_up_proj", (64, 64)), ("down_proj", (64, 32)))
        }
        model.tensors = {
            f"{at}.{leaf}": raw("F32", value.transpose(0, 2, 1) if across else value) for leaf, value in values.items()
        }
        target = tmp_path / f"new-{across}"
        requantise(model.write(tmp_path / f"src-{across}"), target, Recipe("t"))
        made = tensors(target)
        gate, up = np.split(values["gate_up_proj"][1].astype(np.float32), 2)
        amax = max(np.abs(gate).max(), np.abs(up).max())
        np.testing.assert_array_equal(made[f"{at}.1.up_proj.weight"].array(), nvfp4.quantise(up, amax).stored)
        down = values["down_proj"][1].astype(np.float32)
        np.testing.assert_array_equal(made[f"{at}.1.down_proj.weight"].array(), nvfp4.quantise(down).stored)


def test_a_kv_cache_under_the_constant_one(tmp_path: Path):
    """compressed-tensors stores it as llm-compressor does; modelopt's layout only declares it."""
    model = source("llama")
    for leaf in ("q_proj", "k_proj", "v_proj"):  # attention without a cache that is served
        name = f"model.vision_tower.encoder.layers.0.self_attn.{leaf}.weight"
        model.tensors[name] = raw("BF16", np.ones((16, 16)))
    for layout in Layout:
        recipe = Recipe("t", layout=layout, kv_cache=KvCache.FP8_CAST)
        requantise(model.write(tmp_path / f"src-{layout}"), tmp_path / layout, recipe)
        assert declared(tmp_path / layout)["kv_cache_scheme"]["num_bits"] == 8
        stored = {
            name: one for name, one in tensors(tmp_path / layout).items() if name.endswith(("k_scale", "v_scale"))
        }
        if layout is MODELOPT:
            assert not stored
            continue
        assert sorted(stored) == [f"model.layers.{n}.self_attn.{s}_scale" for n in range(2) for s in "kv"]
        assert {(one.dtype, one.shape, float(one.values()[0])) for one in stored.values()} == {("BF16", (1,), 1.0)}


def test_input_scales_of_a_calibrated_checkpoint(tmp_path: Path):
    """The export's own input scales with our weights are the export, in its layout; in the other their reciprocals."""
    real = EXPORTS / "llama_nvfp4"
    checkpoint = open_checkpoint(real)
    with Sources(checkpoint) as sources:
        scales = Taken(checkpoint, sources)
        for layout in Layout:
            recipe = Recipe("t", layout=layout, activations=Inputs.FROM)
            requantise(LLAMA, tmp_path / layout, recipe, scales, others=(sources,))
    theirs, ours, ct = tensors(real), tensors(tmp_path / MODELOPT), tensors(tmp_path / CT)
    assert not [n for n in theirs if ours[n] != theirs[n]]
    for name, one in theirs.items():
        if name.endswith("input_scale"):
            got = ct[name.replace("input_scale", "input_global_scale")]
            assert got.shape == (1,)
            assert np.float32(got.values()[0]) == np.float32(1) / np.float32(one.values())


def test_a_module_without_a_calibrated_input_scale(tmp_path: Path):
    model = source("llama")
    requantise(
        model.write(tmp_path / "src"), tmp_path / "mlp", Recipe("t", modules=PRESETS["mlp"], activations=Inputs.ONE)
    )
    checkpoint = open_checkpoint(tmp_path / "mlp")
    with Sources(checkpoint) as sources, pytest.raises(RepairError, match="self_attn"):
        plan(open_checkpoint(tmp_path / "src"), Recipe("t", activations=Inputs.FROM), Taken(checkpoint, sources))


def test_all_else_is_carried_over(tmp_path: Path):
    model = source("deepseek")
    root = model.write(tmp_path / "src")
    (root / "tokenizer.json").write_text("{}")
    requantise(root, tmp_path / "new", Recipe("t"))
    made = tensors(tmp_path / "new")
    stays = {name for name in model.tensors if name.removesuffix(".weight") not in model.matrices}
    assert {name: made[name] for name in stays} == {name: model.tensors[name] for name in stays}
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"


def test_least_squares_lose_less(tmp_path: Path):
    """Of the same weights: amax, llm-compressor's range search, the sweep; each error a sum over all of them."""
    model = source("llama")
    root = model.write(tmp_path / "src")
    losses = {}
    for layout, method in product(Layout, Method):
        target = tmp_path / f"{layout}-{method}"
        _, made = requantise(root, target, Recipe("t", method=method, layout=layout))
        losses[layout, method] = sum(row.squared for row in made.rows)
    for layout in Layout:
        assert losses[layout, Method.MSE] < 0.97 * losses[layout, Method.AMAX]
