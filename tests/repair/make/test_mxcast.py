"""Whole casts in both layouts, against the arithmetic of arrays: every byte, in every shard, and what is declared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import auditor
from auditor.audit import Depth
from auditor.finding import Severity
from quant.mx_to_nv import Cast, Source, Way, cast_set
from quant.mx_to_nv import cast as cast_array
from repair.make import mxpieces
from repair.make.activations import Ones
from repair.make.layouts import Layout
from tests.forge import make as forged
from tests.quant.test_mx_to_nv import weights_of
from tests.raw import Raw, raw
from tests.repair.make.mxfp4 import cast, draw, gpt_oss, tensors, write

CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
GOLDEN = Path(__file__).parents[2] / "data" / "golden"
STEM = "model.layers.0.mlp.experts"
APART = ("weight_packed", "weight_scale", "weight_global_scale")
SPREADS = st.sampled_from([3, 9, 17, 18, 19, 21, 30])


def drawn(seed: int, spread: int, experts: int = 2) -> dict[str, Source]:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 5)) * int(rng.choice([1, 4]))
    return {
        "gate_up_proj": draw(rng, (experts, 2 * rows, int(rng.integers(1, 4))), spread),
        "down_proj": draw(rng, (experts, int(rng.integers(1, 9)), int(rng.integers(1, 4))), spread),
    }


def amax_of(*sources: Source) -> float:
    return max(float(np.abs(weights_of(source)).max()) for source in sources)


def assert_codes(found: dict[str, Raw], names: tuple[str, str, str], made: Cast, divides: bool, amax: float) -> None:
    codes, scales, wide = (found[name] for name in names)
    np.testing.assert_array_equal(codes.array(), made.quantised.stored)
    np.testing.assert_array_equal(scales.array(), made.quantised.scales)
    due = np.float32(made.quantised.global_scale)
    if divides:
        due = np.float32(1 / due if made.way is Way.CLOSED_FORM else 2688 / amax)
    assert wide.data == due.tobytes()
    assert wide.shape == ((1,) if divides else ())


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), spread=SPREADS, jobs=st.sampled_from([1, 2]), shards=st.sampled_from([1, 3]))
def test_experts_apart_are_what_the_arithmetic_says(tmp_path_factory, seed, spread, jobs, shards):
    root = tmp_path_factory.mktemp("cast")
    experts = drawn(seed, spread)
    source = gpt_oss(experts, bias=bool(seed % 2))
    rows = cast(write(root / "src", source, shards=shards), root / "dst", CT, jobs=jobs)
    found = tensors(root / "dst")
    wrong = {f"{STEM}.{leaf}_blocks": 0 for leaf in experts}
    for leaf, all_experts in experts.items():
        for e, (packed, scales) in enumerate(zip(all_experts.packed, all_experts.scales, strict=True)):
            gated = leaf == "gate_up_proj"
            leaves = ("gate_proj", "up_proj") if gated else (leaf,)
            parts = [Source(packed[i :: len(leaves)], scales[i :: len(leaves)]) for i in range(len(leaves))]
            for number, (name, made) in enumerate(zip(leaves, cast_set(parts), strict=True)):
                module = f"{STEM}.{e}.{name}"
                assert_codes(found, tuple(f"{module}.{x}" for x in APART), made, True, amax_of(*parts))
                wrong[f"{STEM}.{leaf}_blocks"] += int((~made.exact).sum())
                if f"{STEM}.{leaf}_bias" in source:
                    bias = source[f"{STEM}.{leaf}_bias"]
                    due = np.frombuffer(bias.data, "<u2").reshape(bias.shape)[e, number :: len(leaves)]
                    assert found[f"{module}.bias"] == raw("I16", due)._replace(dtype="BF16", shape=due.shape)
    assert {row.tensor: row.blocks - row.exact for row in rows} == wrong
    for row in rows:  # where one expert is not exact, the others count in the ratio of signal to noise
        whole = float((weights_of(experts[row.tensor.rpartition(".")[2].removesuffix("_blocks")]) ** 2).sum())
        assert row.energy == (pytest.approx(whole, rel=1e-12) if row.error else 0)
    carried = {name: tensor for name, tensor in source.items() if STEM not in name}
    assert {name: found[name] for name in carried} == carried
    assert not [name for name in found if STEM in name and name.rpartition(".")[0] == STEM]


@pytest.fixture(params=[None, 256], ids=["whole", "panels"], scope="module")
def panel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Experts that are transposed at once, and in panels."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setattr(mxpieces, "_PANEL", request.param)
            patch.setattr(mxpieces, "_STEP", request.param)
        yield


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), spread=SPREADS, jobs=st.sampled_from([1, 2]), shards=st.sampled_from([1, 3]))
def test_fused_experts_are_what_the_arithmetic_says(tmp_path_factory, panel, seed, spread, jobs, shards):
    root = tmp_path_factory.mktemp("cast")
    experts = drawn(seed, spread)
    source = gpt_oss(experts)
    rows = cast(write(root / "src", source, shards=shards), root / "dst", MODELOPT, Ones(), jobs)
    found = tensors(root / "dst")
    for row, (leaf, all_experts) in zip(sorted(rows, key=lambda r: r.tensor), sorted(experts.items()), strict=True):
        made, name = cast_array(all_experts), f"{STEM}.{leaf}"
        turned = np.swapaxes(made.quantised.stored, 1, 2), np.swapaxes(made.quantised.scales, 1, 2)
        np.testing.assert_array_equal(found[name].array(), turned[0])
        np.testing.assert_array_equal(found[f"{name}_weight_scale"].array(), turned[1])
        assert found[f"{name}_weight_scale"].dtype == "F8_E4M3"
        assert found[f"{name}_weight_scale_2"].data == np.float32(made.quantised.global_scale).tobytes()
        assert found[f"{name}_input_scale"] == raw("F32", np.float32(1))
        assert (row.exact, row.blocks) == (int(made.exact.sum()), made.exact.size)
        np.testing.assert_allclose(row.error, made.error.sum(), rtol=1e-12)  # two orders of adding float64
        assert found[f"{name}_bias"] == source[f"{name}_bias"]


@pytest.mark.parametrize("layout", list(Layout))
def test_what_is_made_is_sound_and_declared(tmp_path: Path, layout: Layout) -> None:
    source = gpt_oss(drawn(1, 9))
    cast(write(tmp_path / "src", source, shards=3), tmp_path / "dst", layout)
    audit = auditor.scan(tmp_path / "dst", depth=Depth.FULL)
    assert not [f for f in audit.findings if f.severity is not Severity.INFO]
    assert not audit.skipped
    declared = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert declared["num_local_experts"] == 2
    quantization = declared["quantization_config"]
    if layout is MODELOPT:
        assert quantization["quant_algo"] == "W4A16_NVFP4"
    else:
        assert quantization["config_groups"]["group_0"]["input_activations"] is None
        assert quantization["ignore"] == ["lm_head", "model.layers.0.mlp.router", "model.layers.0.self_attn.q_proj"]
    index = json.loads((tmp_path / "dst" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(tmp_path / "dst").keys()
    assert (tmp_path / "dst" / "tokenizer.json").read_text() == "{}"


def test_what_stays_as_it_is_is_copied_by_the_kernel(tmp_path: Path) -> None:
    experts = drawn(2, 9)
    rows = cast(write(tmp_path / "src", gpt_oss(experts)), tmp_path / "dst", CT)
    copied = {row.tensor.rpartition(".")[2]: row.copied for row in rows}
    assert copied == {"down_proj_blocks": experts["down_proj"].packed.size, "gate_up_proj_blocks": 0}


LAYOUTS = {  # forged source -> codes, scales
    "ct-mxfp4": ("weight_packed", "weight_scale"),
    "modelopt-mxfp4-moe": ("weight", "weight_scale"),
    "quark-mxfp4": ("weight", "weight_scale"),
}


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_matrices_share_a_scale_in_a_fused_set_across_shards(
    tmp_path: Path, name: str, layout: Layout, shards: int
) -> None:
    model = forged(name)
    cast(model.write(tmp_path / "src", shards), tmp_path / "dst", layout, Ones())
    found, (codes, scales) = tensors(tmp_path / "dst"), LAYOUTS[name]
    of = {layer.name: layer for layer in model.layers}
    ct = layout is CT
    for layer in model.layers:
        members = layer.fused or (layer.name,)
        sources = [
            Source(model.tensors[f"{m}.{codes}"].array(), model.tensors[f"{m}.{scales}"].array()) for m in members
        ]
        made = cast_set(sources)[members.index(layer.name)]
        leaves = APART if ct else ("weight", "weight_scale", "weight_scale_2")
        assert_codes(found, tuple(f"{layer.name}.{leaf}" for leaf in leaves), made, ct, amax_of(*sources))
        ones = found[f"{layer.name}.{'input_global_scale' if ct else 'input_scale'}"]
        assert ones == raw("F32", np.ones((1,) if ct else (), np.float32))
    assert of
    assert not [f for f in auditor.scan(tmp_path / "dst").findings if f.severity is not Severity.INFO]


def test_experts_of_deepseek_v4(tmp_path: Path) -> None:
    rng, made = np.random.default_rng(5), {}
    sources = {f"layers.0.ffn.experts.{e}.{w}": draw(rng, (4, 2)) for e in range(2) for w in ("w1", "w2", "w3")}
    for name, source in sources.items():
        made[f"{name}.weight"] = raw("I8", source.packed.view(np.int8))
        made[f"{name}.scale"] = raw("F8_E8M0", source.scales)
    config = {"model_type": "deepseek_v4", "quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4"}}
    cast(write(tmp_path / "src", made, config), tmp_path / "dst", CT)
    found = tensors(tmp_path / "dst")
    for e in range(2):
        gate, up = (f"layers.0.ffn.experts.{e}.{w}" for w in ("w1", "w3"))
        for module, one in zip((gate, up), cast_set([sources[gate], sources[up]]), strict=True):
            assert_codes(found, tuple(f"{module}.{x}" for x in APART), one, True, 0)


@pytest.mark.parametrize("spread", [5, 17])
def test_the_exporters_own_cast_has_the_same_bytes(tmp_path: Path, spread: int) -> None:
    """modelopt 0.47's scales and global scale; its codes too, but that it loses the sign of -0."""
    golden = {name: np.load(GOLDEN / f"{name}.npz") for name in ("inputs", "modelopt")}
    packed, scales = (golden["inputs"][f"cast/{spread}/{part}"] for part in ("packed", "scales"))
    cast(
        write(tmp_path / "src", gpt_oss({"down_proj": Source(packed[None], scales[None])})), tmp_path / "dst", MODELOPT
    )
    found, name = tensors(tmp_path / "dst"), f"{STEM}.down_proj"
    live = np.repeat(scales > 0, 2, axis=-1)
    theirs = {part: golden["modelopt"][f"cast/{spread}/{part}"] for part in ("packed", "scales", "global")}
    np.testing.assert_array_equal(found[f"{name}_weight_scale"].array()[0].T[live], theirs["scales"][live])
    np.testing.assert_array_equal(found[f"{name}_weight_scale_2"].values(), theirs["global"].astype(np.float32))
    codes = found[name].array()[0].T
    np.testing.assert_array_equal(codes, packed)
    differ = codes != theirs["packed"]
    assert not ((codes ^ theirs["packed"]) & 0x77)[differ].any()


def test_sets_that_overlap_share_one_scale(tmp_path: Path) -> None:
    rng, leaves = np.random.default_rng(8), ("wq_a", "wkv", "wgate", "wo_a")
    sources = {leaf: draw(rng, (4, 2), spread=4, top=110 + 5 * i) for i, leaf in enumerate(leaves)}
    made: dict[str, Raw] = {}
    for leaf, one in sources.items():
        made[f"layers.0.attn.{leaf}.weight"] = raw("U8", one.packed)
        made[f"layers.0.attn.{leaf}.weight_scale"] = raw("U8", one.scales)
    config = {"model_type": "x", "quantization_config": {"quant_method": "quark"}}
    cast(write(tmp_path / "src", made, config), tmp_path / "dst", MODELOPT)
    found = tensors(tmp_path / "dst")
    wide = {leaf: found[f"layers.0.attn.{leaf}.weight_scale_2"].values().item() for leaf in leaves}
    assert wide["wq_a"] == wide["wkv"] == wide["wgate"] == cast_set(
        [sources[leaf] for leaf in leaves[:3]])[0].quantised.global_scale  # fmt: skip
    assert wide["wo_a"] == cast_array(sources["wo_a"]).quantised.global_scale
