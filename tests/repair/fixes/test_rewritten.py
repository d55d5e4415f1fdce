"""Repairs that change a header: a copy is written, and its tensors are what they should have been."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from auditor.audit import Depth
from auditor.checkpoint import open_checkpoint
from auditor.engine import examine
from auditor.finding import Safety
from quant.activation import Policy
from repair.build import build, plan, rewrites
from repair.fixes.catalogue import ENTRIES
from repair.fixes.desk import Options
from repair.outofplace import repaired_copy
from tests.damages.table import DAMAGES
from tests.forge import Model, make
from tests.layouts import LAYOUTS
from tests.raw import Raw, raw
from tests.repair.mending import contents, serious

REWRITE = Options(Safety.GUESS, include=frozenset(ENTRIES), rewrite=True)
NAMES = ("D14 transposed", "D22 global dtype", "FMT109 0-d in compressed-tensors")
EXACT = [(layout, name) for layout, name in itertools.product(LAYOUTS, NAMES) if DAMAGES[name].fits(make(layout))]
MISSING = [layout for layout in LAYOUTS if DAMAGES["D06 missing input"].fits(make(layout))]
FEW = settings(max_examples=2, derandomize=True, deadline=None, database=None, phases=(Phase.generate,),
               suppress_health_check=list(HealthCheck))  # fmt: skip


def copied(root: Path, out: Path) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Warnings and errors before and after a repair into a copy."""
    ctx, audit = examine(root, depth=Depth.FULL)
    built = build(ctx, audit.findings, REWRITE)
    repaired_copy(root, plan(built), out, rewrites(built))
    ctx.close()
    return serious(audit), serious(examine(out, depth=Depth.FULL)[1])


def tensors(root: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor: dtype, shape, bytes."""
    checkpoint = open_checkpoint(root)
    raw = contents(root)
    return {
        name: (ref.dtype, ref.shape, raw[ref.shard][ref.start : ref.start + ref.nbytes])
        for name, ref in checkpoint.tensors.items()
    }


@pytest.mark.parametrize(("layout", "name"), EXACT)
def test_the_copy_is_what_it_was_before_the_damage(
    layout: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damage = DAMAGES[name]

    @FEW
    @given(st.data(), st.sampled_from((1, 2)))
    def check(data: st.DataObject, shards: int) -> None:
        model = make(layout).copy()

        def pick(options):  # type: ignore[no-untyped-def]
            return options[0] if len(options) == 1 else data.draw(st.sampled_from(options))

        damage.do(model, pick(damage.fits(model)), pick)
        folder = tmp_path_factory.mktemp("rewritten")
        root, whole = model.write(folder / "damaged", shards), make(layout).write(folder / "whole", shards)
        files = contents(root)
        before, after = copied(root, folder / "out")
        assert before
        assert not after
        assert contents(root) == files
        now, true = tensors(folder / "out"), tensors(whole)
        assert now.keys() == true.keys()
        for tensor, (dtype, shape, held) in true.items():
            if now[tensor] != (dtype, shape, held):  # a scale of its own that went through BF16
                assert name == "D22 global dtype"
                assert now[tensor][:2] == (dtype, shape)
                old, new = (np.frombuffer(r, np.float32) for r in (held, now[tensor][2]))
                assert np.allclose(new, old, rtol=2**-8, atol=0)

    check()


@pytest.mark.parametrize("layout", MISSING)
def test_a_missing_scale_is_added_and_indexed(layout: str, tmp_path: Path) -> None:
    model: Model = make(layout).copy()
    layers = DAMAGES["D06 missing input"].fits(model)
    DAMAGES["D06 missing input"].do(model, layers[-1], lambda options: options[0])
    root = model.write(tmp_path / "damaged", 2)
    before, after = copied(root, tmp_path / "out")
    assert not after - before
    if after:  # nothing to take it from
        assert after == {("ACT103", layers[-1].codes)}
    elif before:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(make(layout).tensors)
        held = sum(len(raw) for _, _, raw in tensors(tmp_path / "out").values())
        assert index["metadata"]["total_size"] == held


SWIZZLED = [x for x in LAYOUTS if DAMAGES["D13 swizzled"].fits(make(x))]


@pytest.mark.parametrize("layout", SWIZZLED)
def test_a_kernels_order_is_undone(layout: str, tmp_path: Path) -> None:
    model = make(layout).copy()
    for layer in DAMAGES["D13 swizzled"].fits(model):
        scales = model.tensors[layer.scales]
        rows, columns = scales.shape
        high, wide = -(-rows // 128), -(-columns // 4)
        padded = np.zeros((high * 128, wide * 4), np.uint8)
        padded[:rows, :columns] = scales.array()
        # As a running server permutes them.
        kernel = padded.reshape(high, 4, 32, wide, 4).transpose(0, 3, 2, 1, 4)
        model.tensors[layer.scales] = Raw(scales.dtype, padded.shape, kernel.tobytes())
    before, after = copied(model.write(tmp_path / "damaged"), tmp_path / "out")
    assert {code for code, _ in before} >= {"FMT106"}
    assert not after
    assert tensors(tmp_path / "out") == tensors(make(layout).write(tmp_path / "whole"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [1e60, -1e-60, 1e-46])
def test_what_float32_cannot_hold_is_left(value: float, tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    name = "model.layers.0.mlp.down_proj.weight_scale_2"
    model.tensors[name] = raw("F64", np.float64(value))
    ctx, audit = examine(model.write(tmp_path), depth=Depth.FULL)
    built = build(ctx, audit.findings, REWRITE)
    assert [f.fix for f in audit.findings if f.code == "FMT108"] == [None]
    assert ["0 or infinite" in item.reason for item in built.left if item.rule == "FMT108"] == [True]
    assert not built.desk.tensors


@pytest.mark.parametrize(
    ("layout", "name", "code"),
    [
        ("ct-nvfp4", "model.layers.0.mlp.gate_proj.input_global_scale", "ACT103"),
        ("kv-modelopt", "model.layers.0.self_attn.v_proj.v_scale", "KVC102"),
    ],
)
def test_a_name_that_is_taken_is_left_and_the_rest_is_mended(layout: str, name: str, code: str, tmp_path: Path) -> None:
    model = make(layout).copy()
    model.tensors[name] = Raw("I32", model.tensors[name].shape, model.tensors[name].data)
    DAMAGES["D22 global dtype"].do(model, model.layer("model.layers.1.mlp.down_proj"), lambda options: options[0])
    ctx, audit = examine(model.write(tmp_path / "x"), depth=Depth.FULL)
    built = build(ctx, audit.findings, REWRITE)
    assert [f.fix for f in audit.findings if f.code == code] == [None]
    assert code in {item.rule for item in built.left}
    assert [r.rule for r in built.repairs] == ["FMT108"]
    repaired_copy(tmp_path / "x", plan(built), tmp_path / "out", rewrites(built))
    assert "FMT108" not in {f.code for f in examine(tmp_path / "out", depth=Depth.FULL)[1].findings}


def _act103(root: Path, options: Options) -> tuple[Safety | None, list[Safety], list[str]]:
    """What the finding promises; of what safety the repair is; what it adds."""
    ctx, audit = examine(root, depth=Depth.FULL)
    built = build(ctx, audit.findings, options)
    (promised,) = [f.fix.safety if f.fix else None for f in audit.findings if f.code == "ACT103"]
    changes = [r.change for r in built.repairs if r.rule == "ACT103"]
    return promised, [r.safety for r in built.repairs if r.rule == "ACT103"], changes


@pytest.mark.parametrize(
    ("sibling", "peers", "safety"),
    [(True, 0, Safety.BOUNDED), (False, 1, Safety.GUESS), (False, 5, Safety.BOUNDED)],
)
def test_a_missing_scale_is_as_sure_as_the_set_it_is_taken_from(
    sibling: bool, peers: int, safety: Safety, tmp_path: Path
) -> None:
    model, at = make("modelopt-nvfp4-moe").copy(), "model.layers.0.mlp.experts"
    gates = sorted(x.input_scale for x in model.layers if x.name.startswith(at) and x.name.endswith("gate_proj"))
    del model.tensors[gates[0]]
    for gate in gates[1 + peers :]:
        model.tensors[gate] = raw("F32", np.float32(0))
    if not sibling:
        model.tensors[gates[0].replace("gate", "up")] = raw("F32", np.float32(0))
    promised, made, _ = _act103(model.write(tmp_path), REWRITE)
    assert promised is safety
    assert len(made) == 1
    assert made[0] <= safety  # by then the siblings' own are mended


def test_a_policy_gives_a_missing_scale_where_no_peer_does(tmp_path: Path) -> None:
    model = make("ct-nvfp4").copy()
    del model.tensors["model.layers.0.mlp.down_proj.input_global_scale"]
    root = model.write(tmp_path)
    assert _act103(root, REWRITE) == (Safety.GUESS, [], [])
    floor = REWRITE._replace(policy=Policy.FLOOR, floor=0.001)
    assert _act103(root, floor) == (Safety.GUESS, [Safety.GUESS], ["added: 1000"])
    least = REWRITE._replace(policy=Policy.MIN_POSITIVE)
    assert _act103(root, least) == (Safety.GUESS, [Safety.GUESS], ["added: 1e+08"])


def test_only_a_scale_gets_its_partner(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    model.tensors["model.layers.0.self_attn.k_proj.output_scale"] = raw("F32", np.float32(0.02))
    _, audit = examine(model.write(tmp_path), depth=Depth.FULL)
    assert [f.fix for f in audit.findings if f.code == "KVC102"] == [None]
