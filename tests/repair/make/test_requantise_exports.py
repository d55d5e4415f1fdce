"""Exports of real exporters, made again from their sources: bit for bit, but where the exporter is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repair.make.layouts import Layout
from repair.make.recipe import PRESETS, Inputs, Method, Recipe
from tests.repair.make.requantising import CORPUS, EXPORTS, declared, requantise, tensors
from tests.repair.make.unquantised import source

MODELOPT, CT = Layout.MODELOPT, Layout.COMPRESSED_TENSORS
LLAMA, QWEN = EXPORTS / "llama_nvfp4__source", EXPORTS / "qwen3moe_nvfp4__source"


EXACT = [
    ("llama_nvfp4", LLAMA, Recipe("t")),
    ("llama_nvfp4_mse", LLAMA, Recipe("t", method=Method.MSE)),
    ("llama_nvfp4_zero_blocks", EXPORTS / "llama_nvfp4_zero_blocks__source", Recipe("t")),
    ("qwen3moe_nvfp4", QWEN, Recipe("t")),
    ("llmc_llama_nvfp4", LLAMA, Recipe("t", layout=CT)),
]


@pytest.mark.parametrize(("name", "root", "recipe"), EXACT, ids=[name for name, *_ in EXACT])
def test_bit_for_bit_the_exporters(name: str, root: Path, recipe: Recipe, tmp_path: Path):
    """All but the input scales, which come from running the model."""
    requantise(root, tmp_path / "new", recipe)
    ours, theirs = tensors(tmp_path / "new"), tensors(EXPORTS / name)
    weights = {n for n in theirs if not n.endswith(("input_scale", "input_global_scale"))}
    assert len([n for n in weights if n.endswith("weight_scale")]) >= 1
    assert not [n for n in sorted(weights) if ours[n] != theirs[n]]


def test_by_least_squares_all_but_ties(tmp_path: Path):
    """Where two scales lose the same to the last bit of float32, the exporter's order of summing may take the other."""
    requantise(QWEN, tmp_path / "new", Recipe("t", method=Method.MSE))
    ours, theirs = tensors(tmp_path / "new"), tensors(EXPORTS / "qwen3moe_nvfp4_mse")
    differ = looked = 0
    for name in theirs:
        if name.endswith("weight_scale"):
            differ += int((ours[name].array() != theirs[name].array()).sum())
            looked += ours[name].size
        elif name.endswith("weight_scale_2"):
            assert ours[name] == theirs[name]
    assert looked > 5_000 > 1000 * differ


def test_an_all_zero_weight_where_the_exporter_writes_nan(tmp_path: Path):
    requantise(EXPORTS / "llama_nvfp4_zero_weight__source", tmp_path / "new", Recipe("t"))
    made = tensors(tmp_path / "new")
    zero = [n.removesuffix(".weight_scale_2") for n, one in made.items() if n.endswith("weight_scale_2")
            and not made[n.removesuffix("_scale_2")].array().any()]  # fmt: skip
    assert len(zero) == 1
    assert float(made[f"{zero[0]}.weight_scale_2"].values()) > 0
    assert not (made[f"{zero[0]}.weight_scale"].array() & 0x7F == 0x7F).any()


def test_the_declaration_of_a_real_export(tmp_path: Path):
    """hf_quant_config.json, too; exclusions as wildcards where nothing within is quantised."""
    requantise(LLAMA, tmp_path / "all", Recipe("t", activations=Inputs.ONE))
    requantise(LLAMA, tmp_path / "mlp", Recipe("t", modules=PRESETS["mlp"]))
    real = declared(EXPORTS / "llama_nvfp4")
    ours = declared(tmp_path / "all")
    assert {**ours, "producer": real["producer"]} == real
    beside = json.loads((tmp_path / "mlp" / "hf_quant_config.json").read_text())["quantization"]
    layers = sorted({name.split(".")[2] for name in tensors(LLAMA) if "layers" in name})
    attention = [f"model.layers.{n}.self_attn*" for n in layers]
    assert sorted(beside["exclude_modules"]) == sorted(["lm_head", "model.embed_tokens", *attention])


def test_names_of_a_real_export_of_fused_experts(tmp_path: Path):
    root = CORPUS / "gptoss_nvfp4"
    layer = next(name.split(".")[2] for name in tensors(root) if "mlp.experts" in name)
    theirs = {name: (one.dtype, len(one.shape)) for name, one in tensors(root).items() if "input_scale" not in name}
    requantise(source("gptoss").write(tmp_path / "src"), tmp_path / "new", Recipe("t"))
    ours = {name: (one.dtype, len(one.shape)) for name, one in tensors(tmp_path / "new").items()}
    pick = (f"layers.{layer}.self_attn", f"layers.{layer}.mlp")
    wanted = {name: kind for name, kind in theirs.items() if any(part in name for part in pick)}
    assert wanted == {name: kind for name, kind in ours.items() if any(part in name for part in pick)}
