"""Configuration files as such, names, versions: CFG106 to CFG115."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Depth
from auditor.finding import Safety, Severity
from auditor.rules.cfg106_old_exponent_bias import is_old
from tests.auditor.configs import (
    MODELOPT,
    MODULES,
    codes,
    ct_config,
    ct_mxfp4,
    ct_nvfp4,
    findings,
    nvfp4,
    outside,
    plain,
    quantised,
    write,
)
from tests.auditor.shards import Spec

SENTINEL = ".\0backbone.pt_name_sentinel"
HF = {
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.embed_tokens"],
    },
}


def hf(**changes: Any) -> dict[str, Any]:
    return {**HF, "quantization": {**HF["quantization"], **changes}}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.13.0", True),
        ("0.12.3.a20251105", True),
        ("0.13.1.a20260108", True),
        ("0.13.1.a20260109", None),
        ("0.13.1.a20260110", False),
        ("0.14.0", False),
        ("0.14.0.1", False),
        ("0.19.0", False),
        ("1.0", False),
        ("0.13.1", None),
        ("", None),
        ("nightly", None),
    ],
)
def test_which_versions_counted_from_125(version: str, expected: bool | None) -> None:
    assert is_old(version) is expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.13.0", [("CFG106", "error")]), ("0.13.1.a20260109", [("CFG106", "warning")]), ("0.14.0", []), ("", [])],
)
def test_old_exponent_bias(tmp_path: Path, version: str, expected: list[tuple[str, str]]) -> None:
    config = ct_config("mxfp4-pack-quantized", version=version)
    config["config_groups"]["group_0"] |= {
        "weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
        "input_activations": None,
    }
    root = write(tmp_path, quantised(ct_mxfp4), config)
    assert codes(root) == expected
    assert all(f.fix and f.fix.safety is Safety.GUESS for f in findings(root, "CFG106"))


def test_old_version_without_mxfp4_is_sound(tmp_path: Path) -> None:
    assert codes(write(tmp_path, quantised(ct_nvfp4), ct_config(version="0.13.0"))) == []


def headless() -> dict[str, Spec]:
    return {k: v for k, v in quantised().items() if not k.startswith("lm_head")}


def test_untied_and_no_head(tmp_path: Path) -> None:
    (found,) = findings(write(tmp_path / "a", headless()), "CFG107")
    assert (found.tensor, found.severity) == ("config.json", Severity.ERROR)
    assert codes(write(tmp_path / "b", headless(), tie_word_embeddings=True)) == []
    assert codes(write(tmp_path / "c", headless(), tie_word_embeddings=None)) == []
    assert codes(write(tmp_path / "d", headless(), architectures=["LlamaModel"])) == []
    assert codes(write(tmp_path / "e", headless(), text_config={"tie_word_embeddings": True})) == []


def test_tied_and_a_head_like_the_embedding(tmp_path: Path) -> None:
    found = findings(write(tmp_path, quantised(), tie_word_embeddings=True))
    assert [(f.code, f.severity) for f in found] == [("CFG107", Severity.INFO)]


def test_tied_and_another_head(tmp_path: Path) -> None:
    root = write(tmp_path, quantised(), tie_word_embeddings=True)
    shard = root / "model.safetensors"
    raw = bytearray(shard.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    raw[8 + int.from_bytes(raw[:8], "little") + header["lm_head.weight"]["data_offsets"][0]] ^= 1
    shard.write_bytes(raw)
    assert codes(root) == [("CFG107", "warning")]
    assert codes(root, Depth.HEADERS) == []


def test_tied_and_a_quantised_head(tmp_path: Path) -> None:
    config = {**MODELOPT, "ignore": []}
    root = write(tmp_path, headless() | nvfp4("lm_head"), config, tie_word_embeddings=True)
    assert codes(root, Depth.HEADERS) == [("CFG107", "error")]


def test_marker_of_the_exporter(tmp_path: Path) -> None:
    config = {**MODELOPT, "ignore": [f"lm_head{SENTINEL}", f"model.embed_tokens{SENTINEL}", f"model.mtp{SENTINEL}*"]}
    (found,) = [f for f in findings(write(tmp_path, quantised(), config)) if f.severity is not Severity.INFO]
    assert (found.code, found.tensor, found.count) == ("CFG108", "config.json", 3)
    assert "should be 'lm_head'" in found.message
    assert "\0" not in found.message


def test_both_files_are_told(tmp_path: Path) -> None:
    bad = ["lm_head\x08", "model.embed_tokens "]
    root = write(tmp_path, quantised(), {**MODELOPT, "ignore": bad}, hf(exclude_modules=bad))
    assert [(f.code, f.tensor, f.count) for f in findings(root)] == [
        ("CFG108", "config.json", 2),
        ("CFG108", "hf_quant_config.json", 2),
    ]


def test_names_in_the_table_of_mixed_precision(tmp_path: Path) -> None:
    layers = {f"{m}{SENTINEL}": {"quant_algo": "NVFP4", "group_size": 16} for m in MODULES}
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    (found,) = findings(write(tmp_path, quantised(), config))
    assert (found.code, found.count) == ("CFG108", 14)


def test_idle_entries_are_info(tmp_path: Path) -> None:
    config = {**MODELOPT, "ignore": ["lm_head", "vision_tower*", "re:.*visual.*", "mtp*"]}
    found = findings(write(tmp_path, quantised(), config))
    assert [(f.code, f.severity, f.count) for f in found] == [("CFG109", Severity.INFO, 3)]
    assert findings(write(tmp_path / "tied", headless(), tie_word_embeddings=True)) == []


@pytest.mark.parametrize(
    ("maker", "config", "entry"),
    [
        (nvfp4, MODELOPT, "model.layers.2.MLP.down_proj"),
        (nvfp4, MODELOPT, "re:.*layers.2.mlp.down_proj$"),
        (ct_nvfp4, ct_config(), "model.layers.2.mlp*"),
        (ct_nvfp4, ct_config(), "*.mlp.down_proj"),
        (ct_nvfp4, ct_config(), "model.layers.2.mlp.down_proj.weight"),
    ],
)
def test_an_entry_that_was_meant_to_match(tmp_path: Path, maker: Any, config: dict[str, Any], entry: str) -> None:
    key = "ignore"
    tensors = quantised(maker) | plain("model.layers.2.mlp.down_proj")
    root = write(tmp_path, tensors, {**config, key: ["lm_head", entry]}, num_hidden_layers=3)
    expected = [("CFG103", "error")] if entry.startswith("re:") else [("CFG103", "error"), ("CFG109", "warning")]
    assert codes(root) == expected


@pytest.mark.parametrize(
    ("model_type", "leaf", "bad"),
    [
        ("mixtral", "gate_proj", True),
        ("mixtral", "w1", False),
        ("qwen3_moe", "w1", True),
        ("qwen3_moe", "gate_proj", False),
        ("nemotron_h", "up_proj", False),
        ("nemotron_h", "gate_proj", True),
        ("llama4_text", "w1", False),
        ("unheard_of", "w1", False),
        ("granitemoehybrid", "gate_proj", True),
        ("granitemoe", "w1", False),
    ],
)
def test_names_of_another_architecture(tmp_path: Path, model_type: str, leaf: str, bad: bool) -> None:
    experts = {k: v for i in range(2) for k, v in nvfp4(f"model.layers.0.mlp.experts.{i}.{leaf}").items()}
    found = findings(write(tmp_path, outside() | experts, MODELOPT, model_type=model_type))
    assert [(f.code, f.count) for f in found] == ([("CFG110", 8)] if bad else [])


def test_two_files_that_agree(tmp_path: Path) -> None:
    assert findings(write(tmp_path, quantised(), MODELOPT, HF)) == []
    spelled = {**MODELOPT, "ignore": ["lm_head*", "model.embed_tokens"]}
    assert findings(write(tmp_path / "b", quantised(), spelled, HF)) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"quant_algo": "FP8"}, "algorithm"),
        ({"kv_cache_quant_algo": "FP8"}, "KV cache"),
        ({"group_size": 32}, "group size"),
        ({"exclude_modules": ["lm_head", "model.layers.0.mlp*"]}, "3 layers differ"),
    ],
)
def test_two_files_that_differ(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    (found,) = findings(write(tmp_path, quantised(), MODELOPT, hf(**changes)))
    assert (found.code, found.tensor, found.severity) == ("CFG111", "hf_quant_config.json", Severity.WARNING)
    assert word in found.message


def test_a_file_left_from_before_a_conversion_is_info(tmp_path: Path) -> None:
    found = findings(write(tmp_path, quantised(ct_nvfp4), ct_config(), HF))
    assert [(f.code, f.severity) for f in found] == [("CFG111", Severity.INFO)]


def test_cache_declared_or_stored_alone_is_info(tmp_path: Path) -> None:
    scheme = {**MODELOPT, "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}
    scales: dict[str, Spec] = {"model.layers.0.self_attn.k_proj.k_scale": ("F32", [])}
    declared = findings(write(tmp_path / "a", quantised(), scheme))
    stored = findings(write(tmp_path / "b", quantised() | scales))
    both = findings(write(tmp_path / "c", quantised() | scales, scheme))
    assert [(f.code, f.severity) for f in declared + stored] == [("CFG112", Severity.INFO)] * 2
    assert both == []


@pytest.mark.parametrize("pattern", [r"re:(a)\1", "re:(?i)lm_head", "re:(", "re:" + "a" * 5000, "re:(?<=x)y"])
def test_an_expression_that_is_not_evaluated(tmp_path: Path, pattern: str) -> None:
    tensors = quantised(ct_nvfp4) | plain("model.layers.1.mlp.w1")
    found = findings(write(tmp_path, tensors, ct_config(ignore=["lm_head", pattern])))
    assert [(f.code, f.severity) for f in found] == [("CFG113", Severity.INFO)]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("a string", "quantization_config"),
        ([], "quantization_config"),
        ({**MODELOPT, "quant_algo": 7}, "quant_algo"),
        ({**MODELOPT, "quant_algo": None}, "quant_algo"),
        ({**MODELOPT, "ignore": "lm_head"}, "ignore"),
        ({**MODELOPT, "ignore": ["lm_head", 3]}, "ignore"),
        ({**MODELOPT, "group_size": "sixteen"}, "group_size"),
        ({"quant_method": 3, "bits": 4}, "quant_method"),
        ({"bits": 4}, "quant_method"),
        ({"quant_method": "fp8", "activation_scheme": "sometimes"}, "activation_scheme"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 3}}, "config_groups.g"),
        ({"quant_method": "quark", "global_quant_config": None}, "global_quant_config"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers"),
    ],
)
def test_a_value_that_loaders_cannot_read(tmp_path: Path, config: Any, word: str) -> None:
    found = findings(write(tmp_path, quantised(), config), "CFG114")
    assert found
    assert found[0].severity is Severity.ERROR
    assert word in found[0].message


def test_an_algorithm_that_no_one_knows_is_a_warning(tmp_path: Path) -> None:
    assert codes(write(tmp_path, quantised(), {**MODELOPT, "quant_algo": "NVFP3"})) == [("CFG114", "warning")]
    config = {"quant_method": "newest"}
    assert codes(write(tmp_path, quantised(), config)) == [("CFG114", "warning")]
    assert codes(write(tmp_path, quantised(), {"quant_method": "torchao"})) == []


def test_nothing_is_declared(tmp_path: Path) -> None:
    assert codes(write(tmp_path, quantised(), None)) == [("CFG115", "error")]
    (tmp_path / "config.json").unlink()
    assert codes(tmp_path) == []


def test_nothing_is_quantised(tmp_path: Path) -> None:
    (found,) = findings(write(tmp_path, quantised(plain)))
    assert (found.code, found.tensor, found.count) == ("CFG115", "config.json", 14)


def test_the_second_file_alone_declares(tmp_path: Path) -> None:
    assert codes(write(tmp_path, quantised(), None, HF)) == []
    assert codes(write(tmp_path, quantised(inputs=False), None, HF)) == [("CFG101", "error")]


def test_an_object_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    assert codes(write(tmp_path, quantised(), "a string")) == [("CFG114", "error")]


def test_an_entry_may_name_a_module_without_a_weight(tmp_path: Path) -> None:
    tensors: dict[str, Spec] = quantised() | {"model.layers.0.mixer.A_log": ("F32", [4])}
    assert findings(write(tmp_path, tensors, {**MODELOPT, "ignore": ["lm_head", "model.layers.0.mixer"]})) == []
