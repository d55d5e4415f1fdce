"""What is declared for each layer against what is stored: CFG101 to CFG105."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from auditor.finding import Safety, Severity
from tests.auditor.configs import (
    MODELOPT,
    MODULES,
    codes,
    ct_config,
    ct_nvfp4,
    findings,
    fp8,
    nvfp4,
    outside,
    plain,
    quantised,
    write,
)
from tests.auditor.shards import Spec

FP8 = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
W4A16 = {**MODELOPT, "quant_algo": "W4A16_NVFP4"}
WEIGHT_ONLY = {
    **MODELOPT,
    "config_groups": {"group_0": {**MODELOPT["config_groups"]["group_0"], "input_activations": None}},
}
MIXED = {
    "quant_method": "modelopt",
    "quant_algo": "MIXED_PRECISION",
    "quantized_layers": {
        m: {"quant_algo": "FP8"} if "self_attn" in m else {"quant_algo": "NVFP4", "group_size": 16} for m in MODULES
    },
}


def mixed() -> dict[str, Spec]:
    tensors = outside()
    for module in MODULES:
        tensors |= fp8(module) if "self_attn" in module else nvfp4(module)
    return tensors


HEALTHY: dict[str, tuple[dict[str, Spec], Any]] = {
    "modelopt": (quantised(), MODELOPT),
    "w4a16": (quantised(inputs=False), W4A16),
    "weight-only groups": (quantised(inputs=False), WEIGHT_ONLY),
    "dynamic scheme": (quantised(inputs=False), {**MODELOPT, "config_groups": {}, "activation_scheme": "dynamic"}),
    "compressed-tensors": (quantised(ct_nvfp4), ct_config()),
    "fp8": (quantised(fp8), FP8),
    "mixed": (mixed(), MIXED),
    "globs": (
        {**quantised(), **plain("model.layers.2.self_attn.q_proj"), **plain("model.layers.2.mlp.gate_proj")},
        {**MODELOPT, "ignore": ["lm_head", "model.layers.2*"]},
    ),
    "fused name in the list": (
        {**quantised(), **{k: v for leaf in "qkv" for k, v in plain(f"model.layers.2.self_attn.{leaf}_proj").items()}},
        {**MODELOPT, "ignore": ["lm_head", "model.layers.2.self_attn.qkv_proj"]},
    ),
    "other wrapper": (
        {**quantised(), **plain("model.language_model.layers.3.mlp.up_proj")},
        {**MODELOPT, "ignore": ["lm_head", "language_model.model.layers.3.mlp.up_proj"]},
    ),
    "router": ({**quantised(), "model.layers.0.mlp.gate.weight": ("BF16", [4, 32])}, MODELOPT),
    "one big block": (
        quantised(fp8),
        {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo", "ignore": ["lm_head"]},
    ),
    "nothing declared, nothing quantised": ({**outside(), **plain(MODULES[0])}, None),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_healthy(tmp_path: Path, name: str) -> None:
    tensors, config = HEALTHY[name]
    assert codes(write(tmp_path, tensors, config)) == []


def test_declared_activation_scales_are_missing(tmp_path: Path) -> None:
    (found,) = findings(write(tmp_path, quantised(inputs=False)))
    assert (found.code, found.tensor, found.count, found.severity) == ("CFG101", "config.json", 14, Severity.ERROR)
    assert found.fix is not None
    assert found.fix.safety is Safety.EXACT
    assert "W4A16_NVFP4" in found.fix.note


def test_local_scales_still_need_the_global_one(tmp_path: Path) -> None:
    tensors = {k: v for k, v in quantised(ct_nvfp4).items() if "input_global_scale" not in k}
    assert codes(write(tmp_path, tensors, ct_config())) == [("CFG101", "error")]


def test_one_algorithm_of_two_lacks_its_scales(tmp_path: Path) -> None:
    tensors = {k: v for k, v in mixed().items() if not ("mlp" in k and "input_scale" in k)}
    (found,) = findings(write(tmp_path, tensors, MIXED))
    assert (found.code, found.count) == ("CFG101", 6)


def test_a_layer_that_is_missing_says_nothing_of_scales(tmp_path: Path) -> None:
    root = write(tmp_path, quantised(inputs=False))
    index = {"weight_map": {"a": "gone.safetensors"} | dict.fromkeys(quantised(inputs=False), "model.safetensors")}
    (root / "model.safetensors.index.json").write_text(__import__("json").dumps(index))
    assert "CFG101" not in dict(codes(root))


@pytest.mark.parametrize("pattern", ["lm_head", "lm_head*", "*head"])
def test_quantised_head_under_an_excluded_name(tmp_path: Path, pattern: str) -> None:
    tensors = {k: v for k, v in quantised().items() if not k.startswith("lm_head")} | nvfp4("lm_head")
    (found,) = findings(write(tmp_path, tensors, {**MODELOPT, "ignore": [pattern]}))
    assert (found.code, found.tensor, found.severity) == ("CFG102", "lm_head.weight", Severity.ERROR)
    assert repr(pattern) in found.message


def test_one_wrong_entry_is_one_finding(tmp_path: Path) -> None:
    (found,) = findings(write(tmp_path, quantised(), {**MODELOPT, "ignore": ["lm_head", "model.layers.*.self_attn*"]}))
    assert (found.code, found.count, len(found.related)) == ("CFG102", 8, 7)


def test_a_substring_is_not_a_strict_match(tmp_path: Path) -> None:
    config = {**MODELOPT, "ignore": ["lm_head", "model.layers.0.mlp.gate"]}
    assert codes(write(tmp_path, quantised(), config)) == []


def test_a_layer_that_the_table_forgets(tmp_path: Path) -> None:
    config = copy.deepcopy(MIXED)
    del config["quantized_layers"][MODULES[4]], config["quantized_layers"][MODULES[5]]
    assert [f.tensor for f in findings(write(tmp_path, mixed(), config), "CFG102")] == [
        f"{MODULES[4]}.weight",
        f"{MODULES[5]}.weight",
    ]


def test_unquantised_layer_off_the_list(tmp_path: Path) -> None:
    tensors = {k: v for k, v in quantised().items() if not k.startswith(MODULES[6])} | plain(MODULES[6])
    (found,) = findings(write(tmp_path, tensors))
    assert (found.code, found.tensor, found.severity) == ("CFG103", f"{MODULES[6]}.weight", Severity.ERROR)
    assert found.fix is not None
    assert MODULES[6] in found.fix.note


def test_one_kind_of_layer_is_one_finding(tmp_path: Path) -> None:
    extra = {k: v for i in range(2) for k, v in plain(f"model.layers.{i}.linear_attn.in_proj_qkvz").items()}
    (found,) = findings(write(tmp_path, quantised() | extra))
    assert (found.code, found.count, found.related) == (
        "CFG103",
        2,
        ("model.layers.1.linear_attn.in_proj_qkvz.weight",),
    )


@pytest.mark.parametrize(
    "module",
    ["visual.blocks.0.mlp.gate_proj", "mtp.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj", "vision_tower.q_proj"],
)
def test_parts_that_are_built_apart_are_info(tmp_path: Path, module: str) -> None:
    found = findings(write(tmp_path, quantised() | plain(module)), "CFG103")
    assert [f.severity for f in found] == [Severity.INFO]


def test_head_off_the_list_is_a_warning_for_modelopt_alone(tmp_path: Path) -> None:
    assert codes(write(tmp_path / "a", quantised(), {**MODELOPT, "ignore": []})) == [("CFG103", "warning")]
    assert codes(write(tmp_path / "b", quantised(ct_nvfp4), ct_config(ignore=[]))) == []


def test_deepseek_like_files_list_nothing(tmp_path: Path) -> None:
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}

    def block(module: str) -> dict[str, Spec]:
        return {f"{module}.weight": ("F8_E4M3", [4, 32]), f"{module}.weight_scale_inv": ("F32", [1, 1])}

    tensors = quantised(block)
    kind_of_its_own = plain("model.layers.0.self_attn.indexer.wk") | plain("model.layers.0.self_attn.q_b_proj")
    assert codes(write(tmp_path / "a", tensors | kind_of_its_own, config)) == []
    odd = {k: v for k, v in tensors.items() if not k.startswith(MODULES[3])} | plain(MODULES[3])
    assert codes(write(tmp_path / "b", odd, config)) == [("CFG103", "error")]


@pytest.mark.parametrize(
    ("maker", "algo"),
    [
        (nvfp4, "FP8"),
        (nvfp4, "MXFP8"),
        (nvfp4, "W4A16_AWQ"),
        (nvfp4, "W4A8_NVFP4_FP8"),
        (fp8, "NVFP4"),
        (fp8, "MXFP8"),
        (fp8, "FP8_PER_CHANNEL_PER_TOKEN"),
    ],
)
def test_format_other_than_declared(tmp_path: Path, maker: Any, algo: str) -> None:
    config = {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"]}
    (found,) = findings(write(tmp_path, quantised(maker), config))
    assert (found.code, found.count, found.severity) == ("CFG104", 14, Severity.ERROR)


def test_one_layer_contradicts_the_table(tmp_path: Path) -> None:
    config = copy.deepcopy(MIXED)
    config["quantized_layers"][MODULES[3]] = {"quant_algo": "NVFP4", "group_size": 16}
    (found,) = findings(write(tmp_path, mixed(), config))
    assert (found.code, found.tensor) == ("CFG104", f"{MODULES[3]}.weight")


@pytest.mark.parametrize(
    ("scale", "shape", "algo", "expected"),
    [
        ([], [256, 256], "FP8_PB_WO", [("CFG104", "error")]),
        ([2, 1, 2, 1], [256, 256], "fp8_pb_wo", []),
        ([2, 1, 2, 1], [256, 256], "FP8", [("CFG104", "error")]),
        ([], [128, 64], "FP8_BLOCK_SCALES", []),
        ([256], [256, 256], "FP8_PER_CHANNEL_PER_TOKEN", []),
        ([256], [256, 256], "FP8", [("CFG104", "error")]),
    ],
)
def test_shape_of_fp8_scales(
    tmp_path: Path, scale: list[int], shape: list[int], algo: str, expected: list[tuple[str, str]]
) -> None:
    config = {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"]}
    assert codes(write(tmp_path, outside() | fp8(MODULES[3], scale, shape), config)) == expected


def test_group_size_other_than_stored(tmp_path: Path) -> None:
    config = {**MODELOPT, "config_groups": {}, "group_size": 32}
    assert codes(write(tmp_path, quantised(), config)) == [("CFG104", "error")]


def test_half_of_the_scales_is_another_rules_matter(tmp_path: Path) -> None:
    tensors = {k: (("F8_E4M3", [4, 1]) if k.endswith("weight_scale") else v) for k, v in quantised().items()}
    assert "CFG104" not in dict(codes(write(tmp_path, tensors)))


def test_formats_differ_inside_a_fused_set(tmp_path: Path) -> None:
    tensors = {k: v for k, v in quantised().items() if not k.startswith(MODULES[1])} | plain(MODULES[1])
    found = findings(write(tmp_path, tensors, {**MODELOPT, "ignore": ["lm_head", MODULES[1]]}))
    assert [(f.code, f.tensor) for f in found] == [("CFG105", f"{MODULES[1]}.weight")]
    assert "q_proj NVFP4, k_proj BF16, v_proj NVFP4" in found[0].message


def test_two_algorithms_inside_a_fused_set(tmp_path: Path) -> None:
    config = copy.deepcopy(MIXED)
    config["quantized_layers"][MODULES[5]] = {"quant_algo": "FP8"}
    tensors = {k: v for k, v in mixed().items() if not k.startswith(MODULES[5])} | fp8(MODULES[5])
    assert codes(write(tmp_path, tensors, config)) == [("CFG105", "error")]


def test_some_layers_without_a_scale_are_another_rules_matter(tmp_path: Path) -> None:
    tensors = {k: v for k, v in quantised().items() if not ("layers.1" in k and k.endswith("input_scale"))}
    assert codes(write(tmp_path, tensors)) == []


def test_a_layer_of_the_table_is_stored_unquantised(tmp_path: Path) -> None:
    tensors = {k: v for k, v in mixed().items() if not k.startswith(MODULES[3])} | plain(MODULES[3])
    found = findings(write(tmp_path, tensors, MIXED))
    assert [(f.code, f.tensor, f.severity) for f in found] == [("CFG103", f"{MODULES[3]}.weight", Severity.ERROR)]


def test_quantised_embeddings_and_head_of_mixed_precision(tmp_path: Path) -> None:
    config = copy.deepcopy(MIXED)
    config["quantized_layers"] |= {
        "model.embed_tokens": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        "lm_head": {"quant_algo": "NVFP4", "group_size": 16},
    }
    rest = {k: v for k, v in mixed().items() if not k.startswith(("lm_head", "model.embed"))}
    tensors = rest | nvfp4("model.embed_tokens", inputs=False) | nvfp4("lm_head")
    assert codes(write(tmp_path, tensors, config)) == []


@pytest.mark.parametrize(
    ("block", "scale", "expected"),
    [
        ([128, 128], [2, 1], []),
        ([32, 32], [5, 2], []),
        ([1, 32], [160, 2], []),
        ([64, 64], [2, 1], [("CFG104", "error")]),
        ([128, 128], [5, 2], [("CFG104", "error")]),
    ],
)
def test_blocks_other_than_declared(
    tmp_path: Path, block: list[int], scale: list[int], expected: list[tuple[str, str]]
) -> None:
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    layer: dict[str, Spec] = {
        "model.layers.0.mlp.down_proj.weight": ("F8_E4M3", [160, 64]),
        "model.layers.0.mlp.down_proj.weight_scale_inv": ("F32", scale),
    }
    assert codes(write(tmp_path, outside() | layer, config)) == expected


def test_half_of_one_members_scales_is_not_another_format(tmp_path: Path) -> None:
    tensors = {**quantised(), f"{MODULES[0]}.weight_scale": ("F8_E4M3", [4, 1])}
    assert codes(write(tmp_path, tensors)) == []
