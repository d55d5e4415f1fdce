"""What peers say of an activation scale."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from auditor.engine import examine
from auditor.finding import Safety, Severity
from auditor.peers import amax_of, plausible, projection, remedy, siblings, typical
from auditor.scalars import faulty
from tests.damages.harness import set_float
from tests.forge import make

AT = "model.layers.0.mlp.experts"


def test_amax_by_convention(tmp_path: Path) -> None:
    for name, value, amax in (("modelopt-nvfp4", 2.0, 5376.0), ("ct-nvfp4", 2.0, 1344.0), ("modelopt-fp8", 2.0, 896.0)):
        ctx, _ = examine(make(name).write(tmp_path / name), depth=Depth.HEADERS, rules=[])
        assert amax_of(ctx.layers[0], value) == amax


@pytest.mark.parametrize(
    ("amax", "verdict"),
    [(1.001e-6, True), (0.999e-6, False), (0.999e6, True), (1.001e6, False), (0.0, False), (-1.0, False)],
)
def test_plausible_at_its_bounds(amax: float, verdict: bool, tmp_path: Path) -> None:
    ctx, _ = examine(make("modelopt-fp8").write(tmp_path), depth=Depth.HEADERS, rules=[])
    assert plausible(ctx.layers[0], amax / 448.0) is verdict


def test_subnormals_are_faulty_and_the_smallest_normal_is_not() -> None:
    tiny = np.finfo(np.float32).tiny
    assert not faulty(float(tiny))
    assert faulty(float(np.nextafter(tiny, np.float32(0))))


@pytest.mark.parametrize(
    ("usable", "safety"), [(6, Safety.BOUNDED), (4, Safety.BOUNDED), (3, Safety.BOUNDED), (2, Safety.GUESS)]
)
def test_remedy_needs_half_of_the_peers(usable: int, safety: Safety, tmp_path: Path) -> None:
    """Six experts: of the five peers of the first, at least half must be plausible."""
    model = make("modelopt-nvfp4-moe").copy()
    for expert in range(6):
        amax = float(expert + 1) if expert < usable else 0.0
        set_float(model, f"{AT}.{expert}.down_proj.input_scale", 0, amax / 2688)
    ctx, _ = examine(model.write(tmp_path), depth=Depth.SCALARS, rules=[])
    layer = next(x for x in ctx.layers if x.name == f"{AT}.5.down_proj")
    if usable == 6:
        layer = next(x for x in ctx.layers if x.name == f"{AT}.0.down_proj")
    peers = siblings(layer, ctx)
    assert len(peers) == 5
    found = remedy(layer, "F32", ctx)
    assert found is not None
    assert found.safety is safety
    if safety is Safety.BOUNDED:
        assert f"amax {float(usable):.4g}" in found.note
    assert remedy(layer, "U8", ctx) is None


def test_a_median_takes_three(tmp_path: Path) -> None:
    ctx, _ = examine(make("modelopt-nvfp4-moe").write(tmp_path), depth=Depth.SCALARS, rules=[])
    peers = ctx.peers[f"{AT}.0.down_proj"]
    assert typical(peers[:2], ctx) is None
    assert typical(peers[:3], ctx) is not None
    assert typical([], ctx) is None


@pytest.mark.parametrize("factor", [5000.0, 1 / 5000])
def test_half_of_a_set_is_judged_by_other_layers(factor: float, tmp_path: Path) -> None:
    """Three of six experts far off: which three is told by the other layer's experts; without those nobody is."""
    model = make("modelopt-nvfp4-moe").copy()
    model.tensors |= {n.replace("layers.0", "layers.1"): deepcopy(t) for n, t in model.tensors.items() if AT in n}
    names = [f"{AT}.{expert}.down_proj.input_scale" for expert in range(6)]
    elsewhere = [name.replace("layers.0", "layers.1") for name in names]
    for number, name in enumerate(names + elsewhere):
        set_float(model, name, 0, (1 + number / 100) * (factor if number in (1, 2, 4) else 1.0) / 2688)
    ctx, audit = examine(model.write(tmp_path / "both"), depth=Depth.SCALARS)
    accused = {f.tensor for f in audit.findings if f.code == "ACT105" and f.severity >= Severity.WARNING}
    assert accused == {names[1], names[2], names[4]}
    assert typical(ctx.peers[f"{AT}.0.down_proj"], ctx) == pytest.approx(1.03, rel=1e-3)
    for name in [name for name in model.tensors if name.startswith("model.layers.1.")]:
        del model.tensors[name]
    ctx, _ = examine(model.write(tmp_path / "alone"), depth=Depth.SCALARS, rules=[])
    assert typical(ctx.peers[f"{AT}.0.down_proj"], ctx) is None


def test_a_lone_scale_does_not_become_the_projections(tmp_path: Path) -> None:
    """One expert 900 times its peers', three lost: filled with it the sound ones would be the odd ones."""
    model = make("modelopt-nvfp4-moe").copy()
    for expert, amax in enumerate((1.0, 900.0, 0.8, 0.0, 0.0, 0.0)):
        set_float(model, f"{AT}.{expert}.down_proj.input_scale", 0, amax / 2688)
    ctx, _ = examine(model.write(tmp_path), depth=Depth.SCALARS, rules=[])
    layer = next(x for x in ctx.layers if x.name == f"{AT}.3.down_proj")
    trusted = projection(layer, ctx).trusted
    assert {name for name, _ in trusted} == {f"{AT}.0.down_proj", f"{AT}.2.down_proj"}
