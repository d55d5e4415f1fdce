"""What a new checkpoint declares is what a real exporter of that layout declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.checkpoint import open_checkpoint
from auditor.declaration import Activation, Algorithm, Family, Group
from auditor.declared import read_declared
from quant.errors import RepairError
from repair.make.declare import Declaration, texts, without_declaration
from repair.make.layouts import Layout
from tests import forge

Json = dict[str, Any]
CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
DATA = Path(__file__).parents[2] / "data"
NVFP4 = Algorithm("NVFP4", Family.NVFP4, Activation.STATIC, 16)
A16 = Algorithm("NVFP4", Family.NVFP4, Activation.NONE, 16)
FP8 = Algorithm("FP8", Family.FP8, Activation.STATIC)
CHANNEL = Algorithm("FP8", Family.FP8_CHANNEL, Activation.DYNAMIC)
BLOCK = Algorithm("FP8", Family.FP8_BLOCK, Activation.DYNAMIC, None, (128, 128))
LAYERS = ("model.layers.0", "model.layers.1")
ATTENTION = tuple(f"{layer}.self_attn.{x}_proj" for layer in LAYERS for x in "koqv")
MLP = tuple(f"{layer}.mlp.{x}_proj" for layer in LAYERS for x in ("down", "gate", "up"))
PLAIN = ("lm_head", "model.embed_tokens")
EXPORTS: dict[str, tuple[Layout, Declaration]] = {
    "exports/llama_nvfp4": (MODELOPT, Declaration((Group("group_0", NVFP4, ("Linear",)),), PLAIN)),
    "exports/llama_fp8": (MODELOPT, Declaration((Group("group_0", FP8, ("Linear",)),), PLAIN)),
    "exports/llama_fp8_pc_pt": (MODELOPT, Declaration((Group("group_0", CHANNEL, ("Linear",)),), PLAIN)),
    "exports/llama_fp8_pb_wo": (MODELOPT, Declaration((Group("group_0", BLOCK, ("Linear",)),), PLAIN)),
    "corpus/llama_mixed_nvfp4mlp_fp8attn": (
        MODELOPT,
        Declaration((Group("group_0", FP8, ATTENTION), Group("group_1", NVFP4, MLP))),
    ),
    "exports/llmc_llama_nvfp4": (CT, Declaration((Group("group_0", NVFP4, ("Linear",)),), PLAIN[:1])),
    "exports/llmc_llama_fp8": (CT, Declaration((Group("group_0", FP8, ("Linear",)),), PLAIN[:1])),
    "exports/llmc_llama_fp8_block": (CT, Declaration((Group("group_0", BLOCK, ("Linear",)),), PLAIN[:1])),
}


def written(layout: Layout, declaration: Declaration, config: Json) -> tuple[Json, Json | None]:
    made = texts(layout, config, declaration)
    config_text, beside = made["config.json"], made["hf_quant_config.json"]
    assert config_text is not None
    return json.loads(config_text), None if beside is None else json.loads(beside)


def plain(found: Any) -> Any:
    """Without what names the writer, and without what real exporters differ in themselves."""
    if isinstance(found, dict):
        return {k: plain(v) for k, v in found.items() if k not in ("producer", "version")}
    return found.upper() if isinstance(found, str) and found.upper() == "FP8_PB_WO" else found


@pytest.mark.parametrize("name", EXPORTS)
def test_same_keys_and_values_as_the_exporter(name):
    layout, declaration = EXPORTS[name]
    real = json.loads((DATA / name / "config.json").read_text())
    config, beside = written(layout, declaration, real)
    assert plain(config) == plain(real)
    there = DATA / name / "hf_quant_config.json"
    assert plain(beside) == (plain(json.loads(there.read_text())) if there.exists() else None)
    for told in (config["quantization_config"], beside or {}):
        if "producer" in told:
            assert told["producer"]["name"] == "modelopt"  # or TensorRT-LLM's AutoDeploy refuses the file


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("kv_fp8", [False, True])
@pytest.mark.parametrize("algorithm", [NVFP4, A16, FP8, CHANNEL, BLOCK])
def test_read_again_it_says_what_was_meant(tmp_path, layout, kv_fp8, algorithm):
    declaration = Declaration((Group("group_0", algorithm, ("Linear",)),), ("lm_head",), kv_fp8)
    made = texts(layout, {"model_type": "llama"}, declaration)
    forge.make("modelopt-nvfp4").write(tmp_path)
    for name, raw in made.items():
        (tmp_path / name).unlink(missing_ok=True)
        if raw is not None:
            (tmp_path / name).write_bytes(raw)
    declared = read_declared(open_checkpoint(tmp_path))
    assert declared.problems == ()
    assert declared.method == layout.value
    found = declared.algo_for("model.layers.0.mlp.down_proj")
    assert found is not None
    assert (found.family, found.activation, found.block) == (algorithm.family, algorithm.activation, algorithm.block)
    assert declared.exclusion("lm_head") is not None
    assert declared.exclusion("model.layers.0.mlp.down_proj") is None
    assert declared.kv_cache == ("FP8" if kv_fp8 else "")
    if layout is MODELOPT:
        assert declared.other is not None
        assert declared.other.kv_cache == declared.kv_cache
        assert declared.other.algo_for("x") == found


def test_what_vllm_insists_on():
    """Its ModelOptNvFp4Config refuses a ``quantization`` object without these three."""
    made = texts(MODELOPT, {}, Declaration((Group("group_0", NVFP4, ("Linear",)),)))["hf_quant_config.json"]
    assert {"group_size", "kv_cache_quant_algo", "exclude_modules"} <= json.loads(made or b"")["quantization"].keys()


def test_mixed_in_compressed_tensors_names_its_formats():
    groups = (Group("group_0", FP8, ATTENTION), Group("group_1", NVFP4, MLP))
    config, _ = written(CT, Declaration(groups), {})
    told = config["quantization_config"]
    assert told["format"] == "mixed-precision"
    formats = [group["format"] for group in told["config_groups"].values()]
    assert formats == ["float-quantized", "nvfp4-pack-quantized"]


@pytest.mark.parametrize("layout", Layout)
def test_what_a_layout_cannot_say(layout):
    for algorithm in (
        Algorithm("MXFP8", Family.MXFP8, Activation.DYNAMIC),
        Algorithm("INT4", Family.INTEGER),
        Algorithm("W4A8", Family.NVFP4_32, Activation.STATIC, 32),
    ):
        with pytest.raises(RepairError, match=r"is not written|has no algorithm"):
            texts(layout, {}, Declaration((Group("group_0", algorithm, ("Linear",)),)))


def test_every_old_declaration_goes():
    inner = {"quantization_config": {"quant_method": "x"}, "kept": 1}
    config = {"a": 1, "quantization_config": {"b": 2}, "compression_config": {}, "text_config": inner, "z": "é\u2028"}
    left = without_declaration(config)
    assert left == {"a": 1, "text_config": {"kept": 1}, "z": "é\u2028"}
    assert config["text_config"]["quantization_config"] == {"quant_method": "x"}, "the source's was changed"
