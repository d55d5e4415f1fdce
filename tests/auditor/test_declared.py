"""What every quant_method declares, and that no JSON makes the reader raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.checkpoint import Checkpoint
from auditor.declared import Activation, Declared, Family, Pattern, read_declared
from tests.auditor.configs import MODELOPT, MODULES, NVFP4_GROUPS, ct_config, findings, quantised, write
from tests.effort import calls

NONE, STATIC, DYNAMIC, UNKNOWN = Activation.NONE, Activation.STATIC, Activation.DYNAMIC, Activation.UNKNOWN
UP = "model.layers.0.mlp.up_proj"


def declared(config: Any = None, beside: Any = None) -> Declared:
    checkpoint = Checkpoint(Path(), "x", whole=True, config=config, hf_quant_config=beside)
    return read_declared(checkpoint)


def of(quantisation: Any) -> Declared:
    return declared({"quantization_config": quantisation})


def modelopt(algo: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algo, "ignore": [], **more}


def group(weights: Any, inputs: Any = None, layout: str = "") -> dict[str, Any]:
    groups = {"g": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups}


def quark(weight: Any, inputs: Any = None, **more: Any) -> dict[str, Any]:
    return {"quant_method": "quark", "global_quant_config": {"weight": weight, "input_tensors": inputs}, **more}


F8, F4 = {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "float"}
MX = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "is_dynamic": False}
NV = [{**MX, "group_size": 16}, {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}]
WEIGHT_ONLY = {"group_0": {**NVFP4_GROUPS["group_0"], "input_activations": None}}

KINDS = [
    (modelopt("NVFP4"), Family.NVFP4, STATIC),
    (modelopt("nvfp4_awq"), Family.NVFP4, STATIC),
    (modelopt("NVFP4_SVD"), Family.NVFP4, STATIC),
    (modelopt("NVFP4", config_groups=WEIGHT_ONLY), Family.NVFP4, NONE),
    (modelopt("NVFP4", activation_scheme="dynamic"), Family.NVFP4, DYNAMIC),
    (modelopt("W4A16_NVFP4"), Family.NVFP4, NONE),
    (modelopt("W4A8_NVFP4_FP8"), Family.NVFP4_32, STATIC),
    (modelopt("mxfp4"), Family.MXFP4, DYNAMIC),
    (modelopt("W4A8_MXFP4_FP8"), Family.MXFP4, UNKNOWN),
    (modelopt("MXFP8"), Family.MXFP8, DYNAMIC),
    (modelopt("FP8"), Family.FP8, STATIC),
    (modelopt("Fp8_Pb_Wo"), Family.FP8_BLOCK, DYNAMIC),
    (modelopt("FP8_BLOCK_SCALES"), Family.FP8_BLOCK, DYNAMIC),
    (modelopt("FP8_PER_CHANNEL_PER_TOKEN"), Family.FP8_CHANNEL, DYNAMIC),
    (modelopt("W4A16_AWQ"), Family.INTEGER, UNKNOWN),
    (modelopt("W8A8_SQ_PER_CHANNEL"), Family.INTEGER, UNKNOWN),
    (modelopt("NVFP3"), Family.UNKNOWN, UNKNOWN),
    ({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, Family.NVFP4, STATIC),
    ({"quant_algo": "FP8"}, Family.FP8, STATIC),
    (ct_config(), Family.NVFP4, STATIC),
    (group({**F4, "strategy": "tensor_group", "group_size": 16}), Family.NVFP4, NONE),
    (group({**F4, "group_size": 32}, {"dynamic": True}, "mxfp4-pack-quantized"), Family.MXFP4, DYNAMIC),
    (group({**F8, "group_size": 32, "strategy": "group"}, layout="mxfp8-quantized"), Family.MXFP8, NONE),
    (group({**F8, "strategy": "tensor"}, {**F8, "dynamic": False}, "float-quantized"), Family.FP8, STATIC),
    (group({**F8, "strategy": "channel"}, {**F8, "dynamic": True}), Family.FP8_CHANNEL, DYNAMIC),
    (group({**F8, "strategy": "block", "block_structure": [128, 128]}), Family.FP8_BLOCK, NONE),
    (group({"num_bits": 4, "type": "int", "strategy": "group"}, layout="pack-quantized"), Family.INTEGER, NONE),
    ({"quant_method": "fp8", "activation_scheme": "static"}, Family.FP8, STATIC),
    ({"quant_method": "FP8", "activation_scheme": "dynamic", "weight_block_size": [1, 32]}, Family.FP8_BLOCK, DYNAMIC),
    ({"quant_method": "mxfp8"}, Family.MXFP8, DYNAMIC),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, Family.FP8_CHANNEL, DYNAMIC),
    ({"quant_method": "gptq", "bits": 4}, Family.INTEGER, UNKNOWN),
    ({"quant_method": "awq", "bits": 4}, Family.INTEGER, UNKNOWN),
    ({"quant_method": "bitsandbytes"}, Family.INTEGER, UNKNOWN),
    (quark(MX, {**MX, "is_dynamic": True}), Family.MXFP4, DYNAMIC),
    (quark(NV, [{**MX, "is_dynamic": True}, NV[1]]), Family.NVFP4, STATIC),
    (quark({"dtype": "fp8_e4m3", "qscheme": "per_channel"}, {"is_dynamic": True}), Family.FP8_CHANNEL, DYNAMIC),
    (quark({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}, {"is_dynamic": False}), Family.FP8, STATIC),
    (quark({"dtype": "int8"}), Family.INTEGER, NONE),
]


@pytest.mark.parametrize(("config", "family", "activation"), KINDS)
def test_every_method(config: dict[str, Any], family: Family, activation: Activation) -> None:
    found = of(config)
    algorithm = found.algo_for(UP)
    assert algorithm is not None
    assert (algorithm.family, found.activation_for(UP)) == (family, activation)
    assert found.summary


def test_the_old_layout_of_modelopt() -> None:
    inner = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": "fp8", "exclude_modules": ["lm_head"]}
    found = declared({}, {"producer": {"name": "modelopt", "version": "0.43.0"}, "quantization": inner})
    assert (found.method, found.file, found.kv_cache) == ("modelopt", "hf_quant_config.json", "FP8")
    assert (found.producer, found.version) == ("modelopt", "0.43.0")
    assert found.exclude == (Pattern("lm_head", "hf_quant_config.json", "exclude_modules"),)
    nested = declared({"quantization_config": {"quant_method": "modelopt", "quantization": inner}})
    assert nested.algo_for(UP) == found.algo_for(UP)


def test_ignore_wins_over_exclude_modules() -> None:
    assert [p.text for p in of(modelopt("FP8", ignore=["a"], exclude_modules=["b"])).exclude] == ["a"]
    only = {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["b"]}
    assert [p.text for p in of(only).exclude] == ["b"]


def test_where_a_declaration_may_lie() -> None:
    inner = declared({"text_config": {"quantization_config": modelopt("FP8")}})
    assert inner.path == ("text_config", "quantization_config")
    assert declared({"compression_config": ct_config()}).method == "compressed-tensors"
    both = declared({"quantization_config": modelopt("FP8"), "text_config": {"quantization_config": ct_config()}})
    assert both.method == "modelopt"
    assert declared({}).method == ""


def test_both_files() -> None:
    found = declared({"quantization_config": MODELOPT}, {"quantization": {"quant_algo": "FP8"}})
    assert found.other is not None
    assert (found.file, found.other.file) == ("config.json", "hf_quant_config.json")
    assert found.other.algorithm is not None
    assert found.other.algorithm.family is Family.FP8


def test_mixed_precision_names_what_is_quantised() -> None:
    layers = {"a.b": {"quant_algo": "FP8"}, "a.experts*": {"quant_algo": "NVFP4", "group_size": 16}}
    found = of(modelopt("MIXED_PRECISION", quantized_layers=layers))
    families = [a.family if (a := found.algo_for(name)) else None for name in ("a.b", "a.experts.3.w1", "a.c")]
    assert families == [Family.FP8, Family.NVFP4, None]
    assert "FP8" in found.summary


def test_groups_with_targets() -> None:
    config = ct_config()
    config["config_groups"]["attention"] = {
        "targets": [r"re:.*self_attn\..*_proj$", "model.layers.0.mlp.down_proj"],
        "weights": {**F8, "strategy": "tensor"},
    }
    found = of(config)
    names = (UP, "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
    assert [a.family for name in names if (a := found.algo_for(name))] == [Family.NVFP4, Family.FP8, Family.FP8]


@pytest.mark.parametrize("target", ["Linear", "torch.nn.Linear", "Llama4TextExperts"])
def test_targets_by_class(target: str) -> None:
    config = ct_config()
    config["config_groups"]["group_0"]["targets"] = [target]
    assert of(config).algo_for(UP) is not None
    config["config_groups"]["group_0"]["targets"] = ["re:.*self_attn.*"]
    assert of(config).algo_for(UP) is None


def test_quark_names_layers_by_globs() -> None:
    layers = {"*self_attn*": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}}
    found = of(quark(MX, layer_quant_config=layers, exclude=["lm_head"], export={"kv_cache_group": ["*k_proj"]}))
    names = (UP, "model.layers.0.self_attn.q_proj")
    assert [a.family for name in names if (a := found.algo_for(name))] == [Family.MXFP4, Family.FP8]
    assert found.kv_cache == "FP8"


def test_deepseek() -> None:
    found = of({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0", "expert_dtype": "fp4"})
    assert (found.weight_block_size, found.scale_fmt, found.expert_dtype) == ((128, 128), "ue8m0", "fp4")
    names = (UP, "layers.3.ffn.experts.0.w1", "layers.3.ffn.shared_experts.w1")
    expected = [Family.FP8_BLOCK, Family.MXFP4, Family.FP8_BLOCK]
    assert [a.family for name in names if (a := found.algo_for(name))] == expected


def test_mxfp4_is_for_experts_alone() -> None:
    found = of({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    assert found.algo_for("model.layers.0.self_attn.q_proj") is None
    algorithm = found.algo_for("model.layers.0.mlp.experts.gate_up_proj")
    assert algorithm is not None
    assert algorithm.family is Family.MXFP4


@pytest.mark.parametrize(
    ("stored", "mended"),
    [
        ("lm_head.\0backbone.pt_name_sentinel", "lm_head"),
        ("backbone.layers.0.\0backbone.pt_name_sentinel*", "backbone.layers.0*"),
        ("lm_head\x08", "lm_head"),
        (" lm_head\n", "lm_head"),
        ("lm_head", "lm_head"),
    ],
)
def test_names_are_mended(stored: str, mended: str) -> None:
    assert Pattern(stored, "", "").mended == mended


@pytest.mark.parametrize(("value", "expected"), [
    ({"num_bits": 8, "type": "float"}, "FP8"), ("NVFP4", "NVFP4"), ("none", ""), (None, ""), ([], ""),
    ({"num_bits": 4, "type": "float"}, "NVFP4"), ({"num_bits": 8, "type": "int"}, "INT8"), ({"num_bits": []}, ""),
])  # fmt: skip
def test_kv_cache(value: Any, expected: str) -> None:
    assert of(modelopt("FP8", kv_cache_scheme=value)).kv_cache == expected


KEYS = st.sampled_from([
    "quant_method", "quant_algo", "config_groups", "ignore", "exclude_modules", "quantization", "quantized_layers",
    "weights", "input_activations", "targets", "group_size", "weight_block_size", "kv_cache_scheme", "producer",
    "version", "format", "num_bits", "type", "strategy", "dynamic", "global_quant_config", "layer_quant_config",
    "weight", "input_tensors", "export", "dtype", "exclude", "text_config", "modules_to_not_convert", "bits",
    "activation_scheme", "quantization_config", "kv_cache_quant_config", "tie_word_embeddings", "architectures",
    "model_type", "num_hidden_layers", "model.layers.0.mlp.up_proj", "expert_dtype", "scale_fmt",
])  # fmt: skip
WORDS = st.sampled_from([
    "modelopt", "compressed-tensors", "fp8", "quark", "mxfp4", "gptq", "NVFP4", "MIXED_PRECISION", "Linear", "lm_head",
    "re:.*", "re:(", "model.layers.*", "[", "*", "", "\0", "\ud800", "float", "local", "0.13.0", "e8m0", "static",
])  # fmt: skip
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=5)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | WORDS, inner, max_size=6), max_leaves=25
)
TABLE = st.dictionaries(KEYS, JSON, max_size=8)
METHODS = st.sampled_from(["modelopt", "compressed-tensors", "fp8", "quark", "mxfp4", "mxfp8", "gptq", "fbgemm_fp8"])


@given(config=TABLE, beside=st.none() | TABLE, method=METHODS)
@settings(max_examples=400, deadline=None)
def test_no_json_makes_it_raise(config: dict[str, Any], beside: Any, method: str) -> None:
    for content in (config, {"quantization_config": {**config, "quant_method": method}}):
        found = declared(content, beside)
        assert isinstance(found.summary, str)
        for name in (UP, "lm_head", "x", ""):
            found.algo_for(name)
            found.exclusion(name)
            found.may_be_excluded(name)
            found.activation_for(name)
            found.has_blocks_of_32(name)


@given(config=TABLE, method=METHODS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_makes_a_rule_raise(tmp_path: Path, config: dict[str, Any], method: str) -> None:
    config.pop("quantization_config", None)
    findings(write(tmp_path, quantised(modules=MODULES[:4]), {**config, "quant_method": method}, **config))


@pytest.mark.parametrize(("method", "key"), [("modelopt", "ignore"), ("fp8", "ignored_layers"), ("quark", "exclude")])
def test_huge_lists_cost_what_their_length_does(method: str, key: str) -> None:
    def look(length: int) -> None:
        many = [f"model.layers.{i}.*x*{i}" for i in range(length)]
        found = of({"quant_method": method, "quant_algo": "FP8", key: many})
        for module in MODULES:
            found.may_be_excluded(module)

    look(10)
    assert calls(lambda: look(8000)) < 3 * calls(lambda: look(4000))
