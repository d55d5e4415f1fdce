"""Activation scales: bounds, company, remedies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from auditor.finding import Finding, Safety, Severity
from tests.audits import about, audited, bad, codes
from tests.damages.harness import set_float, value_of
from tests.forge import Model, make
from tests.raw import raw

AT = "model.layers.0.mlp.experts"


def float32(value: float) -> float:
    return float(np.float32(value))


def experts(layout: str, amaxes: list[float], leaf: str = "down_proj") -> Model:
    model = make(layout).copy()
    for expert, amax in enumerate(amaxes):
        layer = model.layer(f"{AT}.{expert}.{leaf}")
        set_float(model, layer.input_scale, 0, layer.unit / amax if layer.divides else amax / layer.unit)
    return model


def info(model: Model, path: Path, code: str) -> Finding:
    return about(audited(model.write(path), Depth.SCALARS), code)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "zero"),
        (-0.0, "zero"),
        (np.nan, "NaN"),
        (np.inf, "infinite"),
        (-np.inf, "-infinite"),
        (-2.0, "negative (-2)"),
        (1e-45, "subnormal"),
        (1e-39, "subnormal"),
    ],
)
def test_act101_says_what_it_found(value: float, word: str, tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    set_float(model, "model.layers.0.mlp.down_proj.input_scale", 0, value)
    found = info(model, tmp_path, "ACT101")
    assert word in found.message
    assert ("fault of the exporter" in found.message) is (value < 0)


def test_act101_the_smallest_normal_number_is_act105s(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    set_float(model, "model.layers.0.mlp.down_proj.input_scale", 0, 2.0**-126)
    assert codes(audited(model.write(tmp_path))) == ["ACT105"]


def test_act101_names_each_expert_of_a_fused_tensor(tmp_path: Path) -> None:
    model = make("modelopt-3d-per-expert").copy()
    name = "model.layers.0.feed_forward.experts.down_proj_input_scale"
    for expert in (0, 2):
        set_float(model, name, expert, 0.0)
    found = info(model, tmp_path, "ACT101")
    assert [place.index for place in found.places] == [(0,), (2,)]
    assert found.count == 2


def test_act102_compares_bits(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    name = "model.layers.0.mlp.up_proj.input_scale"
    value = np.float32(value_of(model, name))
    set_float(model, name, 0, float(np.nextafter(value, np.float32(1))))
    found = info(model, tmp_path, "ACT102")
    assert found.tensor == "model.layers.0.mlp.gate_proj.input_scale"
    assert found.related == (name,)
    assert found.severity is Severity.WARNING


def test_act102_is_information_for_fp8(tmp_path: Path) -> None:
    model = make("modelopt-fp8").copy()
    set_float(model, "model.layers.0.mlp.up_proj.input_scale", 0, 0.5)
    assert info(model, tmp_path, "ACT102").severity is Severity.INFO


def test_act103_an_expert_without_a_scale(tmp_path: Path) -> None:
    model = make("ct-nvfp4-moe").copy()
    for expert in (1, 4):
        del model.tensors[f"{AT}.{expert}.down_proj.input_global_scale"]
    found = bad(audited(model.write(tmp_path), Depth.HEADERS))
    assert found == {("ACT103", f"{AT}.{expert}.down_proj.weight_packed") for expert in (1, 4)}


@pytest.mark.parametrize("layout", ["modelopt-w4a16", "ct-nvfp4a16", "modelopt-fp8-channel", "modelopt-mxfp4"])
def test_act103_one_scale_among_layers_that_need_none(layout: str, tmp_path: Path) -> None:
    """Weight-only: a stray activation scale on one layer is dropped by loaders; its fused siblings lack nothing."""
    model = make(layout).copy()
    leaf = "input_global_scale" if layout.startswith("ct") else "input_scale"
    model.tensors[f"model.layers.0.self_attn.o_proj.{leaf}"] = raw("F32", np.float32([0.01]))
    assert "ACT103" not in codes(audited(model.write(tmp_path)))


@pytest.mark.parametrize(
    ("amax", "warns"), [(2.0, False), (float(np.nextafter(np.float32(2.001), 3)), True), (1.0, False), (40.0, True)]
)
def test_act104_a_warning_beyond_four_times(amax: float, warns: bool, tmp_path: Path) -> None:
    """modelopt's fallback stands for an amax of 0.5."""
    model = experts("modelopt-nvfp4-moe", [0.5] + [amax] * 5)
    set_float(model, f"{AT}.0.down_proj.input_scale", 0, float32(0.5 / 2688))
    for expert in range(1, 6):
        set_float(model, f"{AT}.{expert}.down_proj.input_scale", 0, float32(0.5 / 2688) * amax / 0.5)
    found = info(model, tmp_path, "ACT104")
    assert found.severity is (Severity.WARNING if warns else Severity.INFO)


@pytest.mark.parametrize("known", [2, 3])
def test_act104_two_peers_are_no_company(known: int, tmp_path: Path) -> None:
    model = experts("modelopt-nvfp4-moe", [0.5] * (6 - known) + [40.0] * known)
    for expert in range(6 - known):
        set_float(model, f"{AT}.{expert}.down_proj.input_scale", 0, float32(0.5 / 2688))
    audit = audited(model.write(tmp_path), Depth.SCALARS)
    assert set(codes(audit)) == ({"ACT104"} if known == 3 else set())


@pytest.mark.parametrize(
    ("factor", "speaks"), [(0.999e3, False), (1.001e3, True), (1 / 0.999e3, False), (1 / 1.001e3, True)]
)
@pytest.mark.parametrize("layout", ["modelopt-nvfp4-moe", "ct-nvfp4-moe"])
def test_act105_a_thousand_times_off_the_median(layout: str, factor: float, speaks: bool, tmp_path: Path) -> None:
    model = experts(layout, [3.0] * 5 + [3.0 * factor])
    assert codes(audited(model.write(tmp_path))) == (["ACT105"] if speaks else [])


def test_act105_suspects_are_named_as_information(tmp_path: Path) -> None:
    model = experts("ct-nvfp4-moe", [3.0, 3.0, 3.0, 3.0, 1e-20, 1e20])
    audit = audited(model.write(tmp_path))
    assert codes(audit) == ["ACT105"] * 2
    (suspects,) = (f for f in audit.findings if f.severity is Severity.INFO)
    assert suspects.count == 4
    assert len(suspects.related) == 3


def test_act105_remedy_is_bounded_by_plausible_peers(tmp_path: Path) -> None:
    for broken, safety in ((1, Safety.BOUNDED), (5, Safety.GUESS)):
        model = experts("ct-nvfp4-moe", [3.0] * (6 - broken) + [1e30] * broken)
        findings = audited(model.write(tmp_path / str(broken))).findings
        assert {f.fix.safety for f in findings if f.fix is not None} == {safety}


def test_act106_counts_each_channel_once(tmp_path: Path) -> None:
    model = make("modelopt-awq").copy()
    name = "model.layers.0.self_attn.o_proj.pre_quant_scale"
    for flat, value in ((1, -np.inf), (3, np.nan), (4, 0.0), (9, -1.0), (20, np.inf)):
        set_float(model, name, flat, value)
    found = about(audited(model.write(tmp_path)), "ACT106")
    assert found.count == 5
    assert [place.index for place in found.places] == [(1,), (3,), (4,), (9,), (20,)]


def test_act107_a_member_without_the_vector(tmp_path: Path) -> None:
    model = make("modelopt-awq").copy()
    del model.tensors["model.layers.0.mlp.up_proj.pre_quant_scale"]
    found = about(audited(model.write(tmp_path)), "ACT107")
    assert "up_proj have none" in found.message
