"""Configuration and index, damaged in every declared way: only the wrong values change, in every file alike."""

from __future__ import annotations

import json
from pathlib import Path

from auditor.audit import Depth
from auditor.finding import Safety
from repair.fixes.desk import Options
from tests.forge import make
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
