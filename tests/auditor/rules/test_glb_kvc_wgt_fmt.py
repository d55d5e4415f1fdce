"""Global scales, KV-cache scales, weights and layouts: bounds and remedies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from auditor.finding import Safety, Severity
from tests.audits import about, audited, bad, codes
from tests.damages.harness import set_float, value_of
from tests.forge import make
from tests.raw import Raw, raw

GATE = "model.layers.0.mlp.gate_proj.weight_scale_2"
UP = "model.layers.0.mlp.up_proj.weight_scale_2"


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize(
    ("factor", "safety"), [(2.0, Safety.EXACT), (0.25, Safety.EXACT), (1.25, Safety.BOUNDED), (3.0, Safety.BOUNDED)]
)
def test_glb102_a_power_of_two_is_exact(factor: float, safety: Safety, shards: int, tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    set_float(model, UP, 0, value_of(model, GATE) * factor)
    found = about(audited(model.write(tmp_path, shards)), "GLB102")
    assert (found.tensor, found.related) == (GATE, (UP,))
    assert found.fix is not None
    assert found.fix.safety is safety
    assert f"{max(factor, 1 / factor):.4g}" in found.message


def test_glb102_tiny_scales_that_allclose_would_accept(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    set_float(model, GATE, 0, 1e-9)
    set_float(model, UP, 0, 9e-9)
    assert codes(audited(model.write(tmp_path))) == ["GLB102"]


def test_glb102_gives_no_remedy_where_a_member_is_unusable(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    set_float(model, UP, 0, float("nan"))
    assert about(audited(model.write(tmp_path)), "GLB102").fix is None


def test_glb102_counts_experts_of_fused_tensors_spelled_apart(tmp_path: Path) -> None:
    """Fused 3-D gate and up tensors with a global scale for each expert."""
    model = make("modelopt-3d-per-expert").copy()
    at = "model.layers.0.feed_forward.experts"
    for part in ("", "_weight_scale", "_weight_scale_2", "_input_scale"):
        tensor = model.tensors[f"{at}.down_proj{part}"]
        model.tensors[f"{at}.gate_proj{part}"] = model.tensors[f"{at}.up_proj{part}"] = tensor
    # The same bytes of block scales would be a finding of their own.
    model.fill(f"{at}.up_proj_weight_scale", 0x40)
    set_float(model, f"{at}.up_proj_weight_scale_2", 1, 1e-3)
    found = about(audited(model.write(tmp_path)), "GLB102")
    assert found.count == 1
    assert [place.index for place in found.places] == [(1,)]
    assert "1 of 3 experts" in found.message


@pytest.mark.parametrize(
    ("layout", "value", "speaks"),
    [
        ("modelopt-nvfp4", 1.0, False),
        ("modelopt-nvfp4", 1.0000001, True),
        ("ct-nvfp4", 1.0, False),
        ("ct-nvfp4", 0.99999994, True),
    ],
)
def test_glb103_one_is_not_above_one(layout: str, value: float, speaks: bool, tmp_path: Path) -> None:
    model = make(layout).copy()
    set_float(model, model.layer("model.layers.0.mlp.down_proj").global_scale, 0, value)
    assert codes(audited(model.write(tmp_path))) == (["GLB103"] if speaks else [])


def test_globals_are_known_at_the_depth_of_scalars(tmp_path: Path) -> None:
    model = make("ct-nvfp4").copy()
    set_float(model, model.layer("model.layers.0.mlp.down_proj").global_scale, 0, float("inf"))
    audit = audited(model.write(tmp_path), Depth.SCALARS)
    found = about(audit, "GLB101")
    assert found.fix is not None
    assert found.fix.safety is Safety.EXACT
    assert found.places[0].old == "0x7F800000"


@pytest.mark.parametrize(("heads", "severity"), [(4, Severity.INFO), (8, Severity.WARNING)])
def test_kvc101_one_scale_per_head(heads: int, severity: Severity, tmp_path: Path) -> None:
    model = make("kv-ct").copy()
    model.config["num_key_value_heads"] = heads
    name = "model.layers.0.self_attn.k_scale"
    model.tensors[name] = raw("BF16", np.full(4, 0.02))
    assert about(audited(model.write(tmp_path)), "KVC101").severity is severity


@pytest.mark.parametrize(
    ("heads", "severity"),
    [
        ([4, 8], Severity.INFO),
        ([8, 4], Severity.WARNING),
        ([], Severity.WARNING),
        ({"4": 4}, Severity.WARNING),
        ([[4]], Severity.WARNING),
    ],
)
def test_kvc101_heads_by_layer(heads: object, severity: Severity, tmp_path: Path) -> None:
    """The scales of layer 0 are held against the first entry; what is no number says nothing."""
    model = make("kv-ct").copy()
    model.config |= {"num_key_value_heads": heads, "num_attention_heads": None}
    model.tensors["model.layers.0.self_attn.k_scale"] = raw("BF16", np.full(4, 0.02))
    assert about(audited(model.write(tmp_path)), "KVC101").severity is severity


def test_kvc101_a_bad_head_is_an_error(tmp_path: Path) -> None:
    model = make("kv-ct").copy()
    model.config["num_key_value_heads"] = 4
    model.tensors["model.layers.0.self_attn.k_scale"] = raw("BF16", np.array([0.02, 0.0, 0.02, np.nan]))
    found = [f for f in audited(model.write(tmp_path)).findings if f.severity is Severity.ERROR]
    assert [[p.index for p in f.places] for f in found] == [[(1,), (3,)]]


def test_wgt101_leaves_unusable_scales_to_wgt102(tmp_path: Path) -> None:
    model = make("modelopt-fp8").copy()
    layer = model.layer("model.layers.0.self_attn.o_proj")
    set_float(model, layer.scales, 0, 0.0)
    model.poke(layer.codes, 100, b"\x7f")
    assert codes(audited(model.write(tmp_path), Depth.FULL)) == ["SCL108", "WGT102"]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_wgt101_dtypes(dtype: str, tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    model.tensors["model.norm.weight"] = raw(dtype, np.array([1.0, np.nan, np.inf, -np.inf, 65504.0, 0.0]))
    found = about(audited(model.write(tmp_path), Depth.FULL), "WGT101")
    assert found.message.startswith("1 NaN and 2 infinite")
    assert [place.index for place in found.places] == [(1,), (2,), (3,)]


def test_wgt102_zero_weight_is_exact(tmp_path: Path) -> None:
    model = make("modelopt-fp8").copy()
    layer = model.layer("model.layers.0.self_attn.o_proj")
    set_float(model, layer.scales, 0, 0.0)
    model.fill(layer.codes, 0x7F)
    audit = audited(model.write(tmp_path))
    for code in ("WGT102", "SCL108"):
        fix = about(audit, code).fix
        assert fix is not None
        assert fix.safety is Safety.EXACT
    model.poke(layer.codes, 0, b"\0")
    fix = about(audited(model.write(tmp_path)), "WGT102").fix
    assert fix is not None
    assert fix.safety is Safety.RESTORED


def test_fmt102_names_the_nearest_layout(tmp_path: Path) -> None:
    model = make("ct-nvfp4").copy()
    del model.tensors["model.layers.0.mlp.down_proj.weight_global_scale"]
    found = about(audited(model.write(tmp_path)), "FMT102")
    assert "ct-nvfp4 would need weight_global_scale" in found.message


@pytest.mark.parametrize("left", [(), ("input_scale",), ("k_scale",)])
def test_fmt103_other_scales_are_no_excuse(left: tuple[str, ...], tmp_path: Path) -> None:
    model = make("modelopt-fp8").copy()
    at = "model.layers.0.self_attn.k_proj"
    del model.tensors[f"{at}.weight_scale"], model.tensors[f"{at}.input_scale"]
    for leaf in left:
        model.tensors[f"{at}.{leaf}"] = raw("F32", np.float32(0.1))
    found = bad(audited(model.write(tmp_path)))
    assert ("FMT103", f"{at}.weight") in found
    assert {code for code, _ in found} <= {"FMT103", "KVC102"}


@pytest.mark.parametrize(
    ("shape", "severity"), [((), Severity.WARNING), ((2,), Severity.ERROR), ((1, 1), None), ((1,), None)]
)
def test_fmt109_shapes_of_a_number(shape: tuple[int, ...], severity: Severity | None, tmp_path: Path) -> None:
    model = make("ct-nvfp4").copy()
    name = "model.layers.0.mlp.down_proj.weight_global_scale"
    value = value_of(model, name)
    model.tensors[name] = raw("F32", np.full(shape, value))
    found = [f.severity for f in audited(model.write(tmp_path)).findings if f.code == "FMT109"]
    assert found == ([severity] if severity else [])


@pytest.mark.parametrize(("rows", "columns", "speaks"), [(128, 256, False), (129, 256, True), (128, 255, True)])
def test_fmt110_is_information(rows: int, columns: int, speaks: bool, tmp_path: Path) -> None:
    model = make("deepseek-fp8-bf16").copy()
    at = "model.layers.0.mlp.extra"
    model.tensors[f"{at}.weight"] = Raw("F8_E4M3", (rows, columns), bytes([0x30]) * (rows * columns))
    grid = (-(-rows // 128), -(-columns // 128))
    model.tensors[f"{at}.weight_scale_inv"] = raw("F32", np.full(grid, 0.01))
    found = [f for f in audited(model.write(tmp_path)).findings if f.tensor == f"{at}.weight"]
    assert [f.code for f in found] == (["FMT110"] if speaks else [])
    assert all(f.severity is Severity.INFO for f in found)


@pytest.mark.parametrize(
    ("block", "shape", "speaks"),
    [
        ([64, 64], (192, 64), False),
        ([64, 64], (200, 64), True),
        ([64, 64], (64, 192), False),
        ([1, 128], (3, 256), False),
        ([1, 128], (3, 200), True),
        ([192, 192], (384, 192), False),
        ([192, 192], (200, 192), True),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_fmt110_takes_the_block_of_the_shapes(
    block: list[int], shape: tuple[int, int], speaks: bool, told: bool, tmp_path: Path
) -> None:
    """Also where only the shapes say it."""
    model = make("deepseek-fp8-bf16").copy()
    for name in [layer.codes for layer in model.layers]:
        grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
        model.tensors[name] = Raw("F8_E4M3", shape, bytes([0x30, 0x35]) * (shape[0] * shape[1] // 2))
        model.tensors[f"{name}_scale_inv"] = raw("BF16", np.linspace(0.01, 0.02, int(np.prod(grid))).reshape(grid))
    if told:
        model.config["quantization_config"]["weight_block_size"] = block
    found = {f.code for f in audited(model.write(tmp_path), Depth.HEADERS).findings if f.code.startswith("FMT")}
    if block == [192, 192] and not told:
        pytest.skip("nothing in the shapes says so")
    assert found == ({"FMT110"} if speaks else set())


TINY = float(np.float32(2.0**-126))


@pytest.mark.parametrize(("value", "bad"), [(TINY, False), (TINY / 2, True), (1e-42, True)])
@pytest.mark.parametrize(
    ("layout", "part", "code"),
    [
        ("modelopt-nvfp4", "self_attn.o_proj.weight_scale_2", "GLB101"),
        ("modelopt-fp8", "self_attn.o_proj.weight_scale", "SCL108"),
        ("kv-modelopt", "self_attn.k_proj.k_scale", "KVC101"),
    ],
)
def test_subnormal_scales_are_unusable(
    layout: str, part: str, code: str, value: float, bad: bool, tmp_path: Path
) -> None:
    damaged = make(layout).copy()
    name = f"model.layers.0.{part}"
    set_float(damaged, name, 0, value)
    found = [(f.tensor, f.count) for f in audited(damaged.write(tmp_path)).findings if f.code == code]
    assert found == ([(name, 1)] if bad else [])


@pytest.mark.parametrize(
    ("layout", "lost"),
    [("modelopt-nvfp4", "weight_scale"), ("modelopt-nvfp4", "weight_scale_2"), ("ct-nvfp4", "weight_global_scale"),
     ("modelopt-mxfp4", "weight_scale"), ("quark-mxfp4", "weight_scale")],
)  # fmt: skip
@pytest.mark.parametrize("alone", [False, True])
def test_a_layer_that_lacks_a_part_is_an_error(layout: str, lost: str, alone: bool, tmp_path: Path) -> None:
    """Where it is declared quantised, and where other layers have that layout; the layout is the right one."""
    damaged = make(layout).copy()
    at = "model.layers.0.self_attn.o_proj"
    for layer in damaged.layers if alone else [damaged.layer(at)]:
        damaged.tensors.pop(f"{layer.name}.{lost}", None)
    found = [f for f in audited(damaged.write(tmp_path)).findings if f.code == "FMT102" and f.layer == at]
    assert [f.severity for f in found] == [Severity.ERROR]
    if not alone:
        assert lost in found[0].message
        assert "deepseek" not in found[0].message


def test_scales_without_a_weight_are_an_error_where_one_is_declared(tmp_path: Path) -> None:
    damaged = make("modelopt-nvfp4").copy()
    at = "model.layers.0.self_attn.o_proj"
    weight = damaged.tensors.pop(f"{at}.weight")
    told = {f.tensor: f.severity for f in audited(damaged.write(tmp_path / "gone")).findings if f.code == "FMT104"}
    assert told[f"{at}.weight_scale"] is told[f"{at}.weight_scale_2"] is Severity.ERROR
    damaged.tensors[f"{at}.weight"] = raw("BF16", np.zeros((weight.shape[0], weight.shape[1] * 2)))
    told = {f.tensor: f.severity for f in audited(damaged.write(tmp_path / "plain")).findings if f.code == "FMT104"}
    assert told[f"{at}.weight_scale"] is Severity.WARNING


def test_fused_sets_are_compared_across_dtypes(tmp_path: Path) -> None:
    """As far as BF16 holds a number: what is left of the same one is no disagreement."""
    for factor, wanted in ((1.0, []), (4.0, ["GLB102"])):
        damaged = make("modelopt-nvfp4").copy()
        name = "model.layers.0.mlp.up_proj.weight_scale_2"
        damaged.tensors[name] = raw("BF16", np.float64(value_of(damaged, name, 0) * factor))
        found = codes(audited(damaged.write(tmp_path / str(factor))))
        assert [code for code in found if code == "GLB102"] == wanted
        assert "FMT108" in found
