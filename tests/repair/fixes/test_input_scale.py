"""Activation scales by policy, against the definition in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from auditor.finding import Safety
from quant.activation import Policy
from repair.fixes.desk import Options
from tests.damages.harness import set_float, value_of
from tests.forge import Model, make
from tests.raw import raw
from tests.repair.mending import mend, planned

MOE = "modelopt-nvfp4-moe"


def options(risk: Safety = Safety.GUESS, policy: Policy = Policy.PEER_MAX, floor: float | None = None) -> Options:
    return Options(risk, policy, floor)


def experts(model: Model, leaf: str) -> list[str]:
    """The activation scales of one projection of the first layer's experts."""
    names = [x.input_scale for x in model.layers if ".experts." in x.name and x.name.endswith(leaf)]
    return [n for n in names if n.split(".experts.")[0] == names[0].split(".experts.")[0]]


def after(root: Path, name: str) -> float:
    """A scalar as stored now, read without the tool."""
    for path in root.glob("*.safetensors"):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entry = json.loads(raw[8 : 8 + length]).get(name)
        if entry:
            begin, end = entry["data_offsets"]
            return float(np.frombuffer(raw[8 + length + begin : 8 + length + end], "<f4")[0])
    raise KeyError(name)


@pytest.mark.parametrize("layout", [MOE, "ct-nvfp4-moe"])
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), 1e-40])
def test_peer_max(layout: str, bad: float, tmp_path: Path) -> None:
    model = make(layout).copy()
    names = experts(model, "down_proj")
    for i, name in enumerate(names):
        set_float(model, name, 0, value_of(model, name) * (1 + i / 8))
    best = (min if "ct" in layout else max)(value_of(model, n) for n in names[1:])
    set_float(model, names[0], 0, bad)
    mended = mend(model.write(tmp_path / "x"), options(Safety.BOUNDED))
    assert after(tmp_path / "x", names[0]) == best
    assert not [f for f in mended.after.findings if f.code.startswith("ACT10") and f.fix]


def test_a_negative_scale_needs_guess(tmp_path: Path) -> None:
    model = make(MOE).copy()
    name = experts(model, "down_proj")[0]
    set_float(model, name, 0, -0.5)
    root = model.write(tmp_path / "x")
    _, built, plan = planned(root, options(Safety.BOUNDED))
    assert not plan.touched
    assert "fault of the exporter" in built.left[0].reason
    _, _, plan = planned(root, options())
    assert plan.touched


def test_half_of_the_peers_lost_is_a_guess(tmp_path: Path) -> None:
    model = make(MOE).copy()
    names = experts(model, "down_proj")
    for name in names[1:]:
        set_float(model, name, 0, 0.0)
    _, built, _ = planned(model.write(tmp_path / "x"), options())
    assert {r.safety for r in built.repairs if r.rule == "ACT101"} == {Safety.GUESS}


def test_min_positive_mends_zeros_only(tmp_path: Path) -> None:
    model = make(MOE).copy()
    zero, nan = experts(model, "down_proj")[:2]
    set_float(model, zero, 0, 0.0)
    set_float(model, nan, 0, float("nan"))
    mended = mend(model.write(tmp_path / "x"), options(policy=Policy.MIN_POSITIVE))
    assert after(tmp_path / "x", zero) == np.float32(1e-8)
    assert np.isnan(after(tmp_path / "x", nan))
    assert [item.tensor for item in mended.built.left if item.rule == "ACT101"] == [nan]


def test_floor(tmp_path: Path) -> None:
    model = make(MOE).copy()
    name = experts(model, "down_proj")[0]
    set_float(model, name, 0, 0.0)
    mend(model.write(tmp_path / "x"), options(policy=Policy.FLOOR, floor=0.25))
    assert after(tmp_path / "x", name) == 0.25


def test_a_whole_pair_lost_stays_a_pair(tmp_path: Path) -> None:
    """gate and up were equal (both zero) and are equal afterwards, though their peers are not."""
    model = make(MOE).copy()
    gates, ups = experts(model, "gate_proj"), experts(model, "up_proj")
    for i, (gate, up) in enumerate(zip(gates[1:], ups[1:], strict=True)):
        set_float(model, gate, 0, 0.001 * (1 + i))
        set_float(model, up, 0, 0.001 * (1 + i))
    for name in (gates[0], ups[0]):
        set_float(model, name, 0, 0.0)
    mended = mend(model.write(tmp_path / "x"), options(Safety.BOUNDED))
    assert after(tmp_path / "x", gates[0]) == after(tmp_path / "x", ups[0]) > 0
    assert not [f for f in mended.after.findings if f.code == "ACT102"]


def test_uninitialised_values_are_not_taken_from(tmp_path: Path) -> None:
    """A peer a thousand times off the median is not the largest that is meant."""
    model = make(MOE).copy()
    names = experts(model, "down_proj")
    wild = value_of(model, names[1]) * 5000
    set_float(model, names[1], 0, wild)
    set_float(model, names[0], 0, 0.0)
    mend(model.write(tmp_path / "x"), options())
    assert after(tmp_path / "x", names[0]) < wild / 100
    assert after(tmp_path / "x", names[1]) < wild / 100


def test_without_peers_it_says_what_to_choose(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    layer = next(x for x in model.layers if x.name.endswith("o_proj"))
    set_float(model, layer.input_scale, 0, 0.0)
    _, built, plan = planned(model.write(tmp_path / "x"), options())
    assert not plan.touched
    assert "--policy min-positive or floor=VALUE" in built.left[0].reason


@pytest.mark.parametrize("layout", ["ct-nvfp4", "modelopt-nvfp4"])
def test_a_floor_means_the_same_in_either_convention(layout: str, tmp_path: Path) -> None:
    model = make(layout).copy()
    layer = model.layer("model.layers.0.mlp.down_proj")
    set_float(model, layer.input_scale, 0, float("inf") if layer.divides else 0.0)
    mended = mend(model.write(tmp_path / "x"), options(policy=Policy.FLOOR, floor=0.001))
    floor = np.float32(0.001)
    assert after(tmp_path / "x", layer.input_scale) == (np.float32(1) / floor if layer.divides else floor)
    assert not mended.after.findings


@pytest.mark.parametrize(("policy", "value"), [(Policy.MIN_POSITIVE, None), (Policy.FLOOR, 1e-8), (Policy.FLOOR, 1e6)])
def test_what_the_dtype_cannot_hold_is_left(policy: Policy, value: float | None, tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    name = "model.layers.0.mlp.down_proj.input_scale"
    model.tensors[name] = raw("F16", np.float16(0))
    _, built, plan = planned(model.write(tmp_path / "x"), options(policy=policy, floor=value))
    assert not plan.touched
    (left,) = [item for item in built.left if item.rule == "ACT101"]
    assert "cannot be stored as F16" in left.reason


def test_a_scale_is_no_peer_of_its_own(tmp_path: Path) -> None:
    model = make(MOE).copy()
    names = experts(model, "down_proj")
    for name in names[1:]:
        set_float(model, name, 0, 40 / 2688)
    set_float(model, names[0], 0, 0.5 / 2688)
    _, built, _ = planned(model.write(tmp_path / "x"), options()._replace(include=frozenset({"ACT104"})))
    (made,) = [r for r in built.repairs if r.rule == "ACT104"]
    assert f"of {len(names) - 1} plausible ones among {len(names) - 1} peers" in made.reason


def test_another_placeholder_is_not_taken_from(tmp_path: Path) -> None:
    model = make("ct-nvfp4-moe").copy()
    names = experts(model, "down_proj")
    best = min(value_of(model, name) for name in names[2:])
    for name in names[:2]:
        set_float(model, name, 0, 1.0)
    asked = options()._replace(include=frozenset({"ACT104"}))
    mended = mend(model.write(tmp_path / "x"), asked)
    assert [after(tmp_path / "x", name) for name in names[:2]] == [best, best]
    assert "ACT104" not in {f.code for f in mended.after.findings}


def test_a_sets_scales_wait_for_the_one_that_is_lost(tmp_path: Path) -> None:
    """q/k/v with a zero: at low risk the mismatch is left with a reason, at high risk both findings go."""
    model = make("modelopt-nvfp4").copy()
    set_float(model, "model.layers.0.self_attn.k_proj.input_scale", 0, 0.0)
    root = model.write(tmp_path / "x")
    for risk in (Safety.EXACT, Safety.BOUNDED):
        audit, built, plan = planned(root, options(risk))
        assert not plan.touched
        assert {f.code: f.fix and f.fix.safety for f in audit.findings} == {"ACT101": Safety.GUESS, "ACT102": None}
        assert {item.rule for item in built.left} == {"ACT101", "ACT102"}
    assert not mend(root, options()).after.findings


@pytest.mark.parametrize(
    ("ratio", "safety"), [(3.9, Safety.BOUNDED), (4.2, Safety.GUESS), (990.0, Safety.GUESS), (1100.0, None)]
)
def test_the_further_apart_a_set_the_less_safe_its_largest(ratio: float, safety: Safety | None, tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    names = [f"model.layers.0.self_attn.{leaf}_proj.input_scale" for leaf in "qkv"]
    for name, amax in zip(names, (1.0, 1.0, ratio), strict=True):
        set_float(model, name, 0, amax / 2688)
    _, built, _ = planned(model.write(tmp_path), options())
    assert [r.safety for r in built.repairs if r.rule == "ACT102"] == [safety] * (safety is not None)
    assert bool([left for left in built.left if left.rule == "ACT102"]) is (safety is None)


@pytest.mark.parametrize(
    ("floor", "wanted", "more"), [(0.25, 0.5, ""), (2.0, 2.0, "; and 2 more of its set"), (None, 0.5, "")]
)
def test_a_policys_value_agrees_with_the_set_and_the_plan_says_so(
    floor: float | None, wanted: float, more: str, tmp_path: Path
) -> None:
    model = make("modelopt-nvfp4").copy()
    names = [f"model.layers.0.self_attn.{leaf}_proj.input_scale" for leaf in "qkv"]
    for name, value in zip(names, (0.0, 0.5, 0.5), strict=True):
        set_float(model, name, 0, value)
    root = model.write(tmp_path)
    policy = Policy.MIN_POSITIVE if floor is None else Policy.FLOOR
    mended = mend(root, options(policy=policy, floor=floor))
    assert [r.change for r in mended.built.repairs if r.rule == "ACT101"] == [f"0 -> {wanted:g}{more}"]
    assert {after(root, name) for name in names} == {wanted}
