"""CFG101: only what declares the layers without scales changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Depth
from auditor.finding import Safety
from repair.fixes.desk import Options
from tests.forge import Model, make
from tests.repair.mending import Mended, mend, serious

EXACT = Options()
INPUTS = ("input_scale", "input_global_scale")


def without_inputs(model: Model, part: str) -> Model:
    """No activation scale in the layers whose name holds ``part``."""
    model.tensors = {n: t for n, t in model.tensors.items() if not (part in n and n.endswith(INPUTS))}
    return model


def two_groups() -> Model:
    """compressed-tensors, NVFP4 in the MLP and static FP8 in the attention."""
    model, other = make("ct-nvfp4").copy(), make("ct-fp8")
    model.tensors = {n: t for n, t in model.tensors.items() if ".self_attn." not in n}
    model.tensors |= {n: t for n, t in other.tensors.items() if ".self_attn." in n}
    declared = model.config["quantization_config"]
    mlp, attention = declared["config_groups"]["group_0"], other.config["quantization_config"]["config_groups"]
    declared["config_groups"] = {
        "mlp": mlp | {"targets": ["re:.*mlp.*"]},
        "attention": attention["group_0"] | {"targets": ["re:.*self_attn.*"]},
    }
    return model


def change(mended: Mended) -> str:
    """What the plan says; the rule promised it in the same words."""
    (finding,) = [f for f in mended.before.findings if f.code == "CFG101"]
    (repair,) = mended.built.repairs
    assert finding.fix is not None
    assert (finding.fix.safety, finding.fix.note) == (Safety.EXACT, repair.change)
    assert repair.places == finding.count
    assert not serious(mended.after)
    return repair.change


@pytest.mark.parametrize(
    ("group", "part", "key", "new"),
    [("mlp", ".mlp.", "input_activations", None), ("attention", ".self_attn.", "input_activations.dynamic", True)],
)
def test_the_sound_group_stays(group: str, part: str, key: str, new: Any, tmp_path: Path) -> None:
    model = without_inputs(two_groups(), part)
    text = json.dumps(model.config)
    mended = mend(model.write(tmp_path), EXACT, Depth.HEADERS)
    assert change(mended) == f"config_groups.{group}.{key} becomes {json.dumps(new)}"
    now = json.loads((tmp_path / "config.json").read_text())
    inputs = now["quantization_config"]["config_groups"][group]["input_activations"]
    assert inputs is None if new is None else inputs["dynamic"] is True
    now["quantization_config"]["config_groups"][group] = model.config["quantization_config"]["config_groups"][group]
    assert json.dumps(now) == text


def test_both_groups_are_mended_apart(tmp_path: Path) -> None:
    mended = mend(without_inputs(two_groups(), "").write(tmp_path), EXACT, Depth.HEADERS)
    assert sorted(r.change for r in mended.built.repairs) == [
        "config_groups.attention.input_activations.dynamic becomes true",
        "config_groups.mlp.input_activations becomes null",
    ]
    assert not serious(mended.after)


def test_a_preset_has_no_other_name(tmp_path: Path) -> None:
    model = without_inputs(make("ct-fp8").copy(), "")
    model.config["quantization_config"]["config_groups"] = {"FP8": ["Linear"]}
    mended = mend(model.write(tmp_path), EXACT, Depth.HEADERS)
    assert [f.fix for f in mended.before.findings if f.code == "CFG101"] == [None]
    assert not mended.plan.touched


def test_entries_of_the_other_algorithm_stay(tmp_path: Path) -> None:
    model = without_inputs(make("modelopt-mixed").copy(), ".mlp.")
    first = model.config["quantization_config"]
    names = [n for n, entry in first["quantized_layers"].items() if entry["quant_algo"] == "NVFP4"]
    others = [n for n in first["quantized_layers"] if n not in names]
    inputs = {"dynamic": False, "num_bits": 4}
    first["config_groups"] = {
        "group_0": {"input_activations": inputs, "targets": names},
        "group_1": {"input_activations": inputs, "targets": others},
    }
    table = first["quantized_layers"]
    table[f"{names[0]} "] = table.pop(names[0])  # mended by another repair of the same plan
    mended = mend(model.write(tmp_path), EXACT, Depth.HEADERS)
    said = next(r.change for r in mended.built.repairs if r.rule == "CFG101")
    assert said.endswith(
        '.quant_algo and 5 more become "W4A16_NVFP4", config_groups.group_0.input_activations becomes null'
    )
    assert not serious(mended.after)
    now = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    beside = json.loads((tmp_path / "hf_quant_config.json").read_text())["quantization"]
    for layers in (now["quantized_layers"], beside["quantized_layers"]):
        assert {layers[name]["quant_algo"] for name in names} == {"W4A16_NVFP4"}
        assert {layers[name]["quant_algo"] for name in others} == {"FP8"}
    assert [now["config_groups"][key]["input_activations"] for key in ("group_0", "group_1")] == [None, inputs]


@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "ct-nvfp4", "ct-fp8", "modelopt-fp8", "modelopt-awq"])
def test_one_algorithm_for_all(layout: str, tmp_path: Path) -> None:
    mended = mend(without_inputs(make(layout).copy(), "").write(tmp_path), EXACT, Depth.HEADERS)
    if layout in ("modelopt-fp8", "modelopt-awq"):
        assert [f.fix for f in mended.before.findings if f.code == "CFG101"] == [None]
        assert [item.rule for item in mended.built.left] == ["CFG101"]
    else:
        assert change(mended)
