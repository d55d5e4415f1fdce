"""Layouts converted: the weights stay what they were, by arithmetic of the tests' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import auditor
from auditor.checkpoint import open_checkpoint
from quant.errors import RepairError
from repair.make import convert
from repair.make.convertrow import ConvertRow
from repair.make.folder import make
from repair.make.layouts import Layout
from repair.make.sources import Sources
from tests import dequantised, forge
from tests.encode import Made
from tests.raw import Raw, raw, stored

CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
EXPORTS = Path(__file__).parents[2] / "data" / "exports"
F32 = np.float32
TO_CT = ["modelopt-nvfp4", "modelopt-nvfp4-old", "modelopt-nvfp4-moe", "modelopt-nvfp4-mixtral", "modelopt-nvfp4-mla",
         "modelopt-nvfp4-mlp-only", "modelopt-nvfp4-head", "modelopt-w4a16", "modelopt-mixed", "modelopt-fp8",
         "modelopt-fp8-moe", "modelopt-fp8-block", "modelopt-fp8-block-rank4", "modelopt-fp8-block-inv",
         "modelopt-fp8-channel"]  # fmt: skip
TO_MODELOPT = ["ct-nvfp4", "ct-nvfp4-moe", "ct-nvfp4a16", "ct-fp8", "ct-fp8-block"]
BOTH = ["deepseek-fp8", "deepseek-fp8-bf16"]
CASES = [*((n, CT) for n in TO_CT + BOTH), *((n, MODELOPT) for n in TO_MODELOPT + BOTH)]


def tensors(root: Path) -> dict[str, Raw]:
    found = {}
    for path in sorted(root.glob("*.safetensors")):
        content = path.read_bytes()
        for name, at in stored(path).items():
            width = {"U8": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4}[at.dtype]
            length = int(np.prod(at.shape, dtype=np.int64)) * width
            found[name] = Raw(at.dtype, at.shape, content[at.start : at.start + length])
    return found


def converted(source: Path, target: Path, layout: Layout, jobs: int = 1) -> list[ConvertRow]:
    checkpoint = open_checkpoint(source)
    with Sources(checkpoint) as sources:
        job, told = convert.plan(checkpoint, sources, layout)
        rows = list(told())
        made = make(job, target, jobs=jobs)
    by_name = [sorted(found, key=lambda row: row.tensor) for found in (rows, made.rows)]  # made: shard by shard
    assert by_name[0] == by_name[1], "the dry run said something else"
    return rows


def made_as(made: Made, layout: Layout) -> Made:
    """The same layer as it must be found in the new layout."""
    base = made.name
    if made.kind == "nvfp4":
        ct = layout is CT
        codes, wide = ("weight_packed", "weight_global_scale") if ct else ("weight", "weight_scale_2")
        inputs = ("input_global_scale" if ct else "input_scale") if made.input_scale else ""
        return Made(base, "nvfp4", f"{base}.{codes}", f"{base}.weight_scale", f"{base}.{wide}",
                    f"{base}.{inputs}" if inputs else "", divides=ct, block=16)  # fmt: skip
    inputs = f"{base}.input_scale" if made.input_scale else ""
    return Made(base, "fp8", f"{base}.weight", f"{base}.weight_scale", input_scale=inputs)


def exact_blocks(made: Made, a: dict[str, Raw], now: Made, b: dict[str, Raw]) -> int:
    """Blocks whose weights are the same float32 numbers, each product rounded as a loader does."""
    parts = []
    for one, held in ((made, a), (now, b)):
        step, wide = dequantised.e4m3(held[one.scales].array()).astype(F32), held[one.global_scale].values().astype(F32)
        step = step / wide.reshape(-1)[0] if one.divides else step * wide.reshape(-1)[0]
        codes = dequantised.nibbles(held[one.codes].array()).astype(F32)
        parts.append(codes.reshape(*step.shape, 16) * step[..., None])
    same = (parts[0] == parts[1]) | np.isnan(parts[0]) & np.isnan(parts[1])
    return int(same.all(-1).sum())


def findings(root: Path) -> set[tuple[str, str]]:
    return {(f.code, f.severity.name) for f in auditor.scan(root).findings if f.severity.name != "INFO"}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_weights_stay(tmp_path, name, layout, shards):
    model = forge.make(name)
    source = model.write(tmp_path / "src", shards)
    rows = {row.tensor: row for row in converted(source, tmp_path / "new", layout, jobs=shards)}
    a, b = model.tensors, tensors(tmp_path / "new")
    consumed: set[str] = set()
    expected: set[str] = set()
    for made in model.layers:
        now = made_as(made, layout)
        old, _ = dequantised.layer(made, a)
        new, _ = dequantised.layer(now, b)
        assert b[now.codes].data == a[made.codes].data
        if made.kind == "nvfp4":
            assert b[now.scales] == a[made.scales]
            np.testing.assert_allclose(new, old, rtol=2.0**-24, atol=0)  # the reciprocal is rounded once
            assert rows[made.codes].blocks == a[made.scales].size
            assert exact_blocks(made, a, now, b) >= rows[made.codes].exact  # a zero code is exact under any scale
            for scale, was in ((now.global_scale, made.global_scale), (now.input_scale, made.input_scale)):
                if was:
                    assert b[scale] == raw("F32", F32(1) / a[was].values().astype(F32), (1,) if layout is CT else ())
        else:
            np.testing.assert_array_equal(new, old)
            assert (rows[made.codes].exact, rows[made.codes].ulps) == (rows[made.codes].blocks, 0)
            if made.input_scale:
                assert b[now.input_scale] == raw("F32", a[made.input_scale].values(), (1,) if layout is CT else ())
        consumed |= {n for n in (made.codes, made.scales, made.global_scale, made.input_scale) if n}
        expected |= {n for n in (now.codes, now.scales, now.global_scale, now.input_scale) if n}
    assert {n for n in b if n not in expected} == {n for n in a if n not in consumed}
    assert all(b[n] == a[n] for n in a if n not in consumed), "what is not quantised changed"
    assert findings(tmp_path / "new") == set()
    assert len(rows) == len(model.layers)


SHAPES = {
    ("modelopt-fp8", CT): (1,), ("modelopt-fp8-channel", CT): (64, 1), ("modelopt-fp8-block-rank4", CT): (2, 2),
    ("ct-fp8", MODELOPT): (), ("ct-fp8-block", MODELOPT): (2, 1, 2, 1), ("deepseek-fp8", MODELOPT): (2, 1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(("name", "layout"), SHAPES)
def test_shapes_of_scales(tmp_path, name, layout):
    converted(forge.make(name).write(tmp_path / "src"), tmp_path / "new", layout)
    found = tensors(tmp_path / "new")["model.layers.0.self_attn.o_proj.weight_scale"]
    assert (found.dtype, found.shape) == ("F32", SHAPES[name, layout])


@pytest.mark.parametrize("name", TO_CT + TO_MODELOPT)
def test_there_and_back(tmp_path, name):
    """The same bytes, but for globals whose reciprocal does not lead back; and where it has settled, settled."""
    model = forge.make(name)
    first, second = (CT, MODELOPT) if name in TO_CT else (MODELOPT, CT)
    rows = {row.tensor: row for row in converted(model.write(tmp_path / "src"), tmp_path / "one", first)}
    converted(tmp_path / "one", tmp_path / "two", second)
    a, b = model.tensors, tensors(tmp_path / "two")
    for made in model.layers:
        now = made_as(made, second)
        assert b[now.codes].data == a[made.codes].data
        assert b[now.scales].values().tolist() if made.kind == "fp8" else b[now.scales] == a[made.scales]
        if made.kind == "fp8":
            np.testing.assert_array_equal(b[now.scales].values().ravel(), a[made.scales].values().ravel())
        if made.global_scale:
            same = b[now.global_scale] == a[made.global_scale]
            assert same == rows[made.codes].inverts
    converted(tmp_path / "two", tmp_path / "three", first)
    converted(tmp_path / "three", tmp_path / "four", second)
    two, four = tensors(tmp_path / "two"), tensors(tmp_path / "four")
    assert sum(two[n] != four[n] for n in two) <= sum(n not in a or two[n] != a[n] for n in two)


@pytest.mark.parametrize("name", ["modelopt-3d-gpt-oss", "modelopt-3d-llama4", "modelopt-3d-per-expert"])
@pytest.mark.parametrize("shards", [1, 2])
def test_fused_experts_come_apart(tmp_path, name, shards):
    model = forge.make(name)
    rows = converted(model.write(tmp_path / "src", shards), tmp_path / "new", CT, jobs=2)
    a, b = model.tensors, tensors(tmp_path / "new")
    told = {row.tensor: row for row in rows}
    for made in (made for made in model.layers if made.transposed):
        whole, _ = dequantised.layer(made, a)
        parent, leaf = made.name.rpartition(".")[::2]
        bias = a.get(f"{made.name}_bias")
        for expert, weight in enumerate(whole):
            parts = {leaf: slice(None)}
            if leaf == "gate_up_proj":
                half = len(weight) // 2
                parts = {"gate_proj": slice(half), "up_proj": slice(half, None)}
                if "gpt-oss" in name:
                    parts = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
            for part, cut in parts.items():
                base = f"{parent}.{expert}.{part}"
                now = made_as(Made(base, "nvfp4", "", ""), CT)
                new, _ = dequantised.layer(now, b)
                np.testing.assert_allclose(new[0], weight[cut], rtol=2.0**-24, atol=0)
                scale = a[made.global_scale].values().astype(F32).reshape(-1)
                wide = F32(1) / scale[expert if scale.size > 1 else 0]
                assert b[now.global_scale] == raw("F32", wide, (1,))
                if bias is not None:
                    np.testing.assert_array_equal(b[f"{base}.bias"].values(), bias.values()[expert][cut])
            assert told[f"{made.codes}[{expert}]"].blocks == weight.size // 16
    assert not [n for n in b if "experts.gate_up" in n or "experts.down" in n]
    assert findings(tmp_path / "new") == set()


def test_fused_fp8_experts_come_apart(tmp_path):
    model = forge.make("modelopt-3d-llama4").copy()
    for made in [made for made in model.layers if made.transposed]:
        for name in (made.codes, made.scales, made.global_scale):
            shape = model.tensors.pop(name).shape
            if name == made.codes:
                e, k, n = shape[0], shape[1] * 2, shape[2]
                codes = np.random.default_rng(e * k * n).integers(0, 127, (e, k, n))
        model.tensors[made.codes] = raw("F8_E4M3", codes)
        model.tensors[made.scales] = raw("F32", F32(0.3))
    told = model.config["quantization_config"]
    experts = [made.name for made in model.layers if made.transposed]
    layers = {made.name: {"quant_algo": "FP8" if made.transposed else "NVFP4"} for made in model.layers}
    for one in model.quantization():
        one.update({"quant_algo": "MIXED_PRECISION", "quantized_layers": layers})
        one.pop("config_groups", None)
    converted(model.write(tmp_path / "src"), tmp_path / "new", CT)
    b = tensors(tmp_path / "new")
    whole = dequantised.e4m3(model.tensors[experts[0]].array()).swapaxes(1, 2)
    parent, leaf = experts[0].rpartition(".")[::2]
    first = f"{parent}.1.{'gate_proj' if leaf == 'gate_up_proj' else leaf}"
    rows = whole.shape[1] // 2 if leaf == "gate_up_proj" else whole.shape[1]
    np.testing.assert_array_equal(dequantised.e4m3(b[f"{first}.weight"].array()), whole[1, :rows])
    assert b[f"{first}.weight_scale"] == raw("F32", F32(0.3), (1,))
    assert told is not None


REFUSED: dict[str, tuple[Layout, str]] = {
    "modelopt-awq": (CT, "modelopt-awq is no layout that converts"),
    "modelopt-svd": (CT, "is no layout that converts|belongs to no weight"),
    "modelopt-w4a8": (CT, "modelopt-w4a8 is no layout"),
    "modelopt-mxfp4": (CT, "modelopt-mxfp4 is no layout"),
    "modelopt-mxfp8": (CT, "modelopt-mxfp8 is no layout"),
    "ct-mxfp4": (MODELOPT, "ct-mxfp4 is no layout"),
    "modelopt-nvfp4": (MODELOPT, "is in the layout of modelopt already"),
    "ct-nvfp4": (CT, "is in the layout of compressed-tensors already"),
    "quark-nvfp4": (CT, "declares quark; only"),
    "gpt-oss-mxfp4": (CT, "declares mxfp4; only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(tmp_path, name):
    layout, why = REFUSED[name]
    source = forge.make(name).write(tmp_path / "src")
    with pytest.raises(RepairError, match=why):
        converted(source, tmp_path / "new", layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 1e-40])
@pytest.mark.parametrize("leaf", ["weight_scale_2", "input_scale"])
def test_a_scale_without_a_reciprocal(tmp_path, leaf, bad):
    model = forge.make("modelopt-nvfp4").copy()
    name = f"model.layers.1.self_attn.o_proj.{leaf}"
    model.tensors[name] = raw("F32", F32(bad))
    with pytest.raises(RepairError, match=rf"model.safetensors: {name}: .* no reciprocal .*; mend it first"):
        converted(model.write(tmp_path / "src"), tmp_path / "new", CT)


def test_experts_of_a_fused_family_do_not_go_back(tmp_path):
    converted(forge.make("modelopt-3d-llama4").write(tmp_path / "src"), tmp_path / "new", CT)
    with pytest.raises(RepairError, match=r"modelopt keeps the experts of llama4\w* fused"):
        converted(tmp_path / "new", tmp_path / "back", MODELOPT)


def test_an_input_scale_of_weights_alone_is_dropped_and_told(tmp_path):
    model = forge.make("modelopt-w4a16").copy()
    name = "model.layers.0.mlp.down_proj.input_scale"
    model.tensors[name] = raw("F32", F32(0.5))
    rows = converted(model.write(tmp_path / "src"), tmp_path / "new", CT)
    assert [row.dropped for row in rows if row.dropped] == [name]
    assert not [n for n in tensors(tmp_path / "new") if n.endswith(("input_scale", "input_global_scale"))]


def test_exclusions_stay(tmp_path):
    model = forge.make("modelopt-nvfp4-mlp-only")
    converted(model.write(tmp_path / "src"), tmp_path / "ct", CT)
    told: Any = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    attention = {f"model.layers.{n}.self_attn.{x}_proj" for n in range(2) for x in "qkvo"}
    assert attention | {"lm_head"} == set(told["ignore"])


def test_as_compressed_tensors_converts(tmp_path):
    """Its own converter made `ctconv_*` from the same export: the same numbers, in the shapes that loaders want."""
    converted(EXPORTS / "llama_nvfp4", tmp_path / "new", CT)
    found, real = tensors(tmp_path / "new"), tensors(EXPORTS / "ctconv_llama_nvfp4")
    for name, tensor in real.items():
        assert found[name] == tensor._replace(shape=tensor.shape or (1,))
