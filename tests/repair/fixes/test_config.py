"""Configuration and index, damaged in every declared way: only the wrong values change, in every file alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auditor.audit import Audit, Depth
from auditor.finding import Safety
from repair.fixes.desk import Options
from tests.forge import Model, make
from tests.layouts import LAYOUTS
from tests.raw import raw
from tests.repair.mending import mend, planned, serious

EXACT = Options()


def test_both_files_declare_the_same_afterwards(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    for declared in model.quantization():
        key = "ignore" if "ignore" in declared else "exclude_modules"
        declared[key] = [entry for entry in declared[key] if entry != "lm_head"]
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert not serious(mended.after)
    config = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    beside = json.loads((tmp_path / "x" / "hf_quant_config.json").read_text())["quantization"]
    assert "lm_head" in config["ignore"]
    assert "lm_head" in beside["exclude_modules"]


def test_a_stale_second_file_is_left_alone(tmp_path: Path) -> None:
    model = make("ct-nvfp4").copy()
    model.config["quantization_config"]["ignore"].append("model.layers.0.mlp.down_proj")
    root = model.write(tmp_path / "x")
    stale = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (root / "hf_quant_config.json").write_text(json.dumps(stale))
    mended = mend(root, EXACT, Depth.HEADERS)
    assert "CFG102" not in {code for code, _ in serious(mended.after)}
    assert json.loads((root / "hf_quant_config.json").read_text()) == stale


def test_an_entry_that_covers_too_much_is_replaced_by_what_it_should_cover(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    for declared in model.quantization():
        key = "ignore" if "ignore" in declared else "exclude_modules"
        declared[key] = ["*"]
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert not {code for code, _ in serious(mended.after)} & {"CFG102", "CFG103"}


def test_the_old_bias_is_mended_once_and_only_when_asked(tmp_path: Path) -> None:
    model = make("ct-mxfp4").copy()
    model.config["quantization_config"]["version"] = "0.13.0"
    root = model.write(tmp_path / "x")
    layer = model.layers[0]
    _, built, plan = planned(root, Options(Safety.GUESS), Depth.SCALES)
    assert not plan.touched
    assert "--include CFG106" in built.left[0].reason
    asked = Options(Safety.GUESS, include=frozenset({"CFG106"}))
    mended = mend(root, asked, Depth.SCALES)
    assert not serious(mended.after)
    assert not planned(root, asked, Depth.SCALES)[2].touched
    ctx = mended.built.desk.ctx
    ref = ctx.checkpoint.tensors[layer.scales]
    old, new = (
        files["model.safetensors"]
        for files in (mended.files, {"model.safetensors": (root / "model.safetensors").read_bytes()})
    )
    assert [b + 2 for b in old[ref.start : ref.start + ref.nbytes]] == list(new[ref.start : ref.start + ref.nbytes])


def test_the_old_bias_is_refused_without_room(tmp_path: Path) -> None:
    model = make("ct-mxfp4").copy()
    model.config["quantization_config"]["version"] = "0.13.0"
    model.poke(model.layers[1].scales, 3, b"\xfd")
    root = model.write(tmp_path / "x")
    audit, built, plan = planned(root, Options(Safety.GUESS, include=frozenset({"CFG106"})), Depth.SCALES)
    assert not plan.touched
    assert [f.fix for f in audit.findings if f.code == "CFG106"] == [None]
    assert "overflow" in next(item.reason for item in built.left if item.rule == "CFG106")


def rewritten(root: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The declarations of config.json and hf_quant_config.json as they are now."""
    beside = root / "hf_quant_config.json"
    second = json.loads(beside.read_text())["quantization"] if beside.exists() else None
    return json.loads((root / "config.json").read_text())["quantization_config"], second


def cfg(audit: Audit) -> set[str]:
    """The codes about the configuration, infos left out."""
    return {code for code, _ in serious(audit) if code.startswith("CFG")}


def unquantise(model: Model, names: Sequence[str]) -> None:
    """Store these layers in BF16; the next layer holds one of their kind that is quantised."""
    model.config["num_hidden_layers"] = 2
    for layer in map(model.layer, names):
        for part, tensor in list(model.tensors.items()):
            if part.startswith(f"{layer.name}."):
                model.tensors.setdefault(part.replace(".layers.0.", ".layers.1."), tensor)
        for part in (layer.codes, layer.scales, layer.global_scale, layer.input_scale):
            model.tensors.pop(part, None)
        model.tensors[f"{layer.name}.weight"] = raw("BF16", np.linspace(-1, 1, 64 * 64).reshape(64, 64))


LISTS = ("ignore", "exclude_modules", "exclude", "modules_to_not_convert", "ignored_layers")
WITHOUT = [
    name
    for name in LAYOUTS
    if make(name).quantization() and any(x.name.endswith("0.self_attn.o_proj") for x in make(name).layers)
]


def key_read(declared: dict[str, Any], flat: bool) -> str:
    """Where vLLM, SGLang and transformers look for exclusions."""
    method = declared.get("quant_method", "modelopt")
    if method == "modelopt":
        return "ignore" if flat else "exclude_modules"
    return {"compressed-tensors": "ignore", "quark": "exclude"}.get(method, "modules_to_not_convert")


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("layout", WITHOUT)
def test_exclusions_are_written_where_loaders_read_them(layout: str, empty: bool, tmp_path: Path) -> None:
    model = make(layout).copy()
    name = next(x.name for x in model.layers if x.name.endswith("0.self_attn.o_proj"))
    unquantise(model, [name])
    for declared in model.quantization():
        for key in LISTS:
            declared.pop(key, None)
    if empty:  # in one of the files
        last = model.quantization()[-1]
        last[key_read(last, model.hf_quant is None)] = []
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert ("CFG103" in cfg(mended.before)) == (not layout.startswith("int"))
    if layout.startswith("int"):
        return
    assert not cfg(mended.after) & {"CFG103", "CFG108", "CFG111", "CFG114"}
    first, second = rewritten(tmp_path / "x") if model.config.get("quantization_config") else (None, None)
    for declared, flat in ((first, True), (second, False)):
        if declared is not None:
            assert name in declared[key_read(declared, flat)]
            assert {key for key in LISTS if key in declared} == {key_read(declared, flat)}


def test_every_module_of_a_large_company_is_named(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    for i in range(2, 102):
        model.tensors[f"model.layers.{i}.mlp.gate_proj.weight"] = raw("BF16", np.ones((16, 16)))
    model.config["num_hidden_layers"] = 102
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert [(r.rule, r.places) for r in mended.built.repairs] == [("CFG103", 100)]
    assert not cfg(mended.after)
    first, second = rewritten(tmp_path / "x")
    assert len(first["ignore"]) == len(second["exclude_modules"]) == 102


def test_an_empty_list_beside_a_filled_one_stays_empty(tmp_path: Path) -> None:
    model = make("deepseek-fp8-bf16").copy()
    declared = model.config["quantization_config"]
    declared |= {"ignored_layers": [], "modules_to_not_convert": ["lm_head"]}
    unquantise(model, ["model.layers.0.self_attn.o_proj"])
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert "CFG103" in cfg(mended.before) - cfg(mended.after)
    first = rewritten(tmp_path / "x")[0]
    assert first["ignored_layers"] == []
    assert first["modules_to_not_convert"] == ["lm_head", "model.layers.0.self_attn.o_proj"]


def test_what_is_no_list_is_left(tmp_path: Path) -> None:
    model = make("ct-nvfp4").copy()
    model.config["quantization_config"]["ignore"] = "lm_head"
    unquantise(model, ["model.layers.0.self_attn.o_proj"])
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert next(f.fix for f in mended.before.findings if f.code == "CFG103") is None
    assert "CFG103" in {code for code, _ in mended.remaining()}
    assert not mended.plan.touched


@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "ct-nvfp4", "modelopt-mixed", "quark-nvfp4", "deepseek-fp8-bf16"])
@pytest.mark.parametrize("garble", ["", " ", "\0"])
def test_every_entry_that_excludes_a_layer_goes(layout: str, garble: str, tmp_path: Path) -> None:
    model = make(layout).copy()
    regex = "re:" if layout in ("ct-nvfp4", "quark-nvfp4") else ""
    wide = "model.layers.0.mlp*" if "modelopt" in layout else f"{regex}model\\.layers\\.0\\.mlp.*"
    for declared in model.quantization():
        key = next((key for key in LISTS if key in declared), "modules_to_not_convert")
        kept = [e for e in declared.get(key, []) if e != "lm_head"]
        declared[key] = [f"{wide}{garble}", "model.layers.0.mlp.up_proj", *kept, "lm_head"]
    mended = mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    assert {"CFG102"} <= cfg(mended.before)
    assert not cfg(mended.after)
    assert "lm_head" in json.dumps(rewritten(tmp_path / "x"))


def test_what_a_wide_entry_covered_stays_excluded(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    model.tensors["vision_tower.blocks.0.fc1.weight"] = raw("BF16", np.ones((16, 16)))
    for declared, key in zip(model.quantization(), ("ignore", "exclude_modules"), strict=True):
        declared[key] = ["*"]
    mend(model.write(tmp_path / "x"), EXACT, Depth.HEADERS)
    named = ["lm_head", "model.embed_tokens", "vision_tower.blocks.0.fc1"]
    assert rewritten(tmp_path / "x")[0]["ignore"] == named
    assert rewritten(tmp_path / "x")[1]["exclude_modules"] == named
