"""One global scale for a fused set: bytes against exact fractions, the predicted error against the measured one."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.audit import Depth
from auditor.engine import examine
from auditor.finding import Safety
from quant.codes import E2M1, E4M3
from quant.scheme import GlobalScale
from repair.fixes import harmonise
from repair.fixes.desk import Desk, Options
from repair.fixes.harmonise import rescaled
from tests.damages.harness import set_float, value_of
from tests.forge import Model, make
from tests.raw import raw
from tests.repair.mending import mend, planned

BOUNDED = Options(Safety.BOUNDED)
EXACT = Options(Safety.EXACT)
VALUES = [Fraction(float(v)) for v in E4M3.values[:0x7F]]
SCALES = st.floats(2.0**-60, 2.0**60, width=32)


def nearest(x: Fraction) -> int:
    """The code of the nearest E4M3 value, of two as near the even one."""
    gap = min(abs(v - x) for v in VALUES)
    ties = [code for code, v in enumerate(VALUES) if abs(v - x) == gap]
    return ties[0] if len(ties) == 1 else next(code for code in ties if code % 2 == 0)


def expect_nearest(ratio: Fraction) -> None:
    table = rescaled(ratio)
    for code, value in enumerate(VALUES):
        assert table[code] == nearest(value * ratio), (code, ratio)
        assert table[code | 0x80] == (table[code] | 0x80 if table[code] else 0)
    assert (table[0x7F], table[0xFF]) == (0x7F, 0xFF)


@settings(deadline=None, max_examples=25)
@given(SCALES, SCALES)
def test_every_byte_becomes_the_nearest(a: float, b: float) -> None:
    expect_nearest(Fraction(min(a, b)) / Fraction(max(a, b)))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 0x7E), st.integers(1, 0x7E), st.sampled_from((-1, 0, 1)))
def test_ratios_at_midpoints(high: int, low: int, nudge: int) -> None:
    """The product falls on the middle between two codes, or a hair beside it."""
    middle = (VALUES[low] + VALUES[low - 1]) / 2
    ratio = middle / VALUES[high] * (1 + Fraction(nudge, 2**60))
    if ratio <= 1:
        expect_nearest(ratio)


def fused(layout: str, ratio: float, leaf: str = "up_proj") -> tuple[Model, str]:
    """A checkpoint whose last gate or up projection has a global scale that is ``ratio`` of its set's."""
    model = make(layout).copy()
    layer = next(x for x in model.layers if x.name.endswith(leaf) and x.fused and x.global_scale)
    old = model.tensors[layer.global_scale].values().reshape(-1)
    model.tensors[layer.global_scale] = raw(
        "F32", (old * np.float32(ratio)).reshape(model.tensors[layer.global_scale].shape)
    )
    return model, layer.name


def weights(root: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A 2-D layer's weights, decoded here and not by the tool: float64 [blocks, 16]."""
    ctx, _ = examine(root, depth=Depth.SCALARS)
    layer = next(x for x in ctx.layers if x.name == name)
    codes = np.frombuffer(ctx.read(layer.codes, 0, layer.codes.nbytes), np.uint8)
    scales = np.frombuffer(ctx.read(layer.scales, 0, layer.scales.nbytes), np.uint8)
    assert layer.global_scale is not None
    top = float(np.frombuffer(ctx.read(layer.global_scale, 0, 4), np.float32)[0])
    ctx.close()
    values = np.stack([E2M1.values[codes & 15], E2M1.values[codes >> 4]], -1).astype(np.float64)
    step = E4M3.values[scales].astype(np.float64)
    step = step / top if layer.name and "global" in layer.global_scale.name else step * top
    blocks: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = values.reshape(scales.size, -1) * step[:, None]
    return blocks


@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "ct-nvfp4", "modelopt-nvfp4-moe", "quark-nvfp4", "modelopt-w4a8"])
@pytest.mark.parametrize("ratio", [1.25, 0.7, 3.3, 0.01])
def test_predicted_error_is_measured(layout: str, ratio: float, tmp_path: Path) -> None:
    model, _ = fused(layout, ratio)
    root = model.write(tmp_path / "x")
    names = [x.name for x in model.layers]
    before = {name: weights(root, name) for name in names}
    mended = mend(root, BOUNDED, Depth.SCALES)
    assert [r.rule for r in mended.built.repairs] == ["GLB102"]
    assert not [f for f in mended.after.findings if f.code in ("GLB102", "SCL102", "ACT102")]
    effects = mended.built.repairs[0].effects
    assert effects
    touched = {effect.layer for effect in effects}
    for effect in effects:
        moved = weights(root, effect.layer) - before[effect.layer]
        measured = math.sqrt((moved**2).sum() / (before[effect.layer] ** 2).sum())
        assert effect.after == pytest.approx(measured, rel=1e-12)
        assert 0 < measured < (0.04 if ratio != 0.01 else 1.0)
    for name in set(names) - touched:
        assert np.array_equal(weights(root, name), before[name])


@pytest.mark.parametrize("ratio", [0.5, 2.0, 0.25, 4.0])
@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "ct-nvfp4"])
def test_powers_of_two_are_exact(layout: str, ratio: float, tmp_path: Path) -> None:
    model, _ = fused(layout, ratio)
    root = model.write(tmp_path / "x")
    before = {x.name: weights(root, x.name) for x in model.layers}
    mended = mend(root, EXACT, Depth.SCALES)
    assert [r.safety for r in mended.built.repairs] == [Safety.EXACT]
    for name, old in before.items():
        assert np.array_equal(weights(root, name), old)


def test_scales_that_vanish_are_counted_and_their_codes_zeroed(tmp_path: Path) -> None:
    model, name = fused("modelopt-nvfp4", 2.0**-14)
    scales = model.tensors[f"{name}.weight_scale"]
    few = np.frombuffer(scales.data, np.uint8).copy()
    few[::3] = 0x38
    model.tensors[f"{name}.weight_scale"] = scales._replace(data=few.tobytes())
    root = model.write(tmp_path / "x")
    mended = mend(root, Options(Safety.GUESS), Depth.FULL)
    repair = mended.built.repairs[0]
    assert f"{few[::3].size} scales become zero" in repair.reason
    assert repair.safety is Safety.GUESS
    gone = ~weights(root, name).reshape(few.size, 16).any(axis=1)
    assert gone[::3].all()
    assert not gone.all()
    assert not [f for f in mended.after.findings if f.code == "SCL102"]


@pytest.mark.parametrize("ratio", [2.0**-15, 1e-9, 3e-38, 2.0**15, 1e20])
@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "ct-nvfp4"])
def test_a_sound_layer_is_not_given_up_for_a_wrong_scale(layout: str, ratio: float, tmp_path: Path) -> None:
    """Under a scale so far off no block scale would stay normal: nothing is promised, nothing is done."""
    model, _ = fused(layout, ratio)
    root = model.write(tmp_path / "x")
    mended = mend(root, BOUNDED, Depth.FULL)
    assert "GLB102" not in {repair.rule for repair in mended.built.repairs}
    assert "GLB102" in {left.rule for left in mended.built.left}
    assert not [f for f in mended.before.findings if f.code == "GLB102" and f.fix]


def test_a_lost_tensor_does_not_become_the_amax(tmp_path: Path) -> None:
    """gate was all zero (NaN scales, codes 7, scale 0): zeroed first, it takes its sibling's scale."""
    model = make("modelopt-nvfp4").copy()
    layer = next(x for x in model.layers if x.name.endswith("gate_proj"))
    model.fill(layer.codes, 0x77)
    model.fill(layer.scales, 0xFF)
    model.tensors[layer.global_scale] = raw("F32", np.float32(0))
    root = model.write(tmp_path / "x")
    mended = mend(root, EXACT, Depth.FULL)
    assert not weights(root, layer.name).any()
    assert not [f for f in mended.after.findings if f.fix]
    assert ("GLB102", layer.global_scale) in mended.repaired()


def test_risk_exact_leaves_it(tmp_path: Path) -> None:
    model, _ = fused("modelopt-nvfp4", 1.25)
    _, built, plan = planned(model.write(tmp_path / "x"), EXACT, Depth.SCALES)
    assert not plan.touched
    assert "--risk bounded" in built.left[0].reason


@given(
    layout=st.sampled_from(("modelopt-nvfp4", "ct-nvfp4")),
    some=st.lists(st.sampled_from((0, 1, 7, 8, 9, 0x10, 0x38, 0x7D, 0x7E, 0x7F, 0x80, 0xB8)), min_size=1, max_size=4),
    ratio=st.sampled_from((0.5, 2.0, 0.25, 2.0**-7, 2.0**-12, 0.7, 3.3, 2.0**-17, 2.0**-24)),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_what_the_scan_tells_of_scales_is_what_counting_tells(
    layout: str, some: list[int], ratio: float, seed: int
) -> None:
    """Zeroed, subnormal and exact scales by the range that a scan found, against a count of every byte."""
    model, name = fused(layout, ratio)
    layer = next(x for x in model.layers if x.name == name)
    held = model.tensors[layer.scales]
    drawn = np.random.default_rng(seed).choice(some, len(held.data)).astype(np.uint8)
    model.tensors[layer.scales] = held._replace(data=drawn.tobytes())
    with TemporaryDirectory() as folder:
        root = model.write(Path(folder) / "x")
        found = []
        for known in (harmonise._occurring, lambda *_: (np.ones(256, np.bool_), np.zeros(256, np.bool_))):
            with mock.patch.object(harmonise, "_occurring", known):
                _, built, plan = planned(root, Options(Safety.GUESS), Depth.SCALES)
            found.append((built.repairs, built.left, plan.identity()))
    assert found[0] == found[1]


def test_what_an_expert_holds_is_not_known_from_all(tmp_path: Path) -> None:
    ctx, _ = examine(make("modelopt-nvfp4").write(tmp_path))
    desk = Desk(ctx, BOUNDED)
    layer = next(x for x in ctx.layers if x.format.global_scale is not GlobalScale.NONE)
    stats = ctx.byte_stats(layer.scales)
    assert stats is not None
    for whole in (True, False):
        maybe, surely = harmonise._occurring(desk, layer, whole)
        assert {stats.low, stats.high} <= set(np.flatnonzero(maybe).tolist())
        assert set(np.flatnonzero(surely).tolist()) == ({stats.low, stats.high} if whole else set())
    ctx.close()


def test_a_negative_scale_that_vanishes_leaves_nothing_to_do(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    layer = model.layer("model.layers.0.mlp.up_proj")
    set_float(model, layer.global_scale, 0, value_of(model, layer.global_scale) / 5)
    model.poke(layer.scales, 0, b"\x81")
    root = model.write(tmp_path)
    mended = mend(root)
    assert {r.rule for r in mended.built.repairs} == {"GLB102"}
    assert not planned(root)[2].touched
    assert not mended.after.findings
