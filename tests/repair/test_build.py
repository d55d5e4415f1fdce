"""Plans: complete, in the right order, the same every time; edits of several fixes on the same bytes compose."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.audit import Depth
from auditor.engine import examine
from auditor.finding import Safety
from auditor.tensorref import TensorRef
from repair.build import SourceFixes, build, plan
from repair.content import piece_of
from repair.fixes.catalogue import ENTRIES
from repair.fixes.desk import Options, float_bytes
from repair.fixes.overlay import HELD, Overlay
from repair.layerchange import by_layer
from reports import demo
from tests.damages.harness import set_block, set_float, set_scale
from tests.forge import make
from tests.repair.mending import EVERYTHING, contents, expect_only_planned, mend, planned, serious

GUESS = Options(Safety.GUESS)


def damaged(tmp_path: Path) -> Path:
    """Lost blocks and a fused mismatch in one layer, zero activation scales in its set."""
    model = make("modelopt-nvfp4").copy()
    gate = next(x for x in model.layers if x.name.endswith("gate_proj"))
    up = next(x for x in model.layers if x.name.endswith("up_proj"))
    for flat, byte in ((0, 0x77), (3, 0x80), (7, 0x31)):
        set_block(model, gate, flat, byte)
        set_scale(model, gate.scales, flat, 0x7F)
    set_float(model, gate.global_scale, 0, 1e-5)
    set_float(model, up.global_scale, 0, 3e-5)
    return model.write(tmp_path / "x")


def test_fixes_compose_on_the_same_bytes(tmp_path: Path) -> None:
    root = damaged(tmp_path)
    mended = mend(root, GUESS, Depth.SCALES)
    expect_only_planned(mended, root)
    assert not serious(mended.after)
    joint = [p for p in mended.plan.patches if "+" in p.rule]
    assert {p.rule for p in joint} == {"SCL101+GLB102"}
    assert {p.safety for p in joint} == {Safety.GUESS}


def test_at_a_lower_risk_lost_blocks_stay_lost(tmp_path: Path) -> None:
    root = damaged(tmp_path)
    mended = mend(root, Options(Safety.BOUNDED), Depth.SCALES)
    expect_only_planned(mended, root)
    left = {(item.rule, item.reason[:18]) for item in mended.built.left}
    assert left == {("SCL101", "needs --risk guess")}
    assert {code for code, _ in serious(mended.after)} == {"SCL101"}


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_findings_does_not_matter(seed: int, tmp_path: Path) -> None:
    demo.forge(tmp_path)
    ctx, audit = examine(tmp_path)
    findings = list(audit.findings)
    first = plan(build(ctx, findings, GUESS))
    random.Random(seed).shuffle(findings)
    second = plan(build(ctx, findings, GUESS))
    ctx.close()
    assert first == second
    assert first.identity() == second.identity()


def test_every_fixable_finding_is_told_of(tmp_path: Path) -> None:
    demo.forge(tmp_path)
    for risk in (Safety.EXACT, Safety.BOUNDED, Safety.GUESS):
        audit, built, made = planned(tmp_path, Options(risk))
        told = {(r.rule, r.tensor) for r in built.repairs} | {(i.rule, i.tensor) for i in built.left}
        told |= set(built.settled)
        assert {(f.code, f.tensor) for f in audit.findings if f.fix} <= told
        assert all(item.reason for item in built.left)
        assert all(patch.safety <= risk for patch in made.patches)
        assert len(made.skipped) == len(built.left)


def test_layers_are_told_what_changed(tmp_path: Path) -> None:
    demo.forge(tmp_path)
    _, built, made = planned(tmp_path, GUESS)
    rows = by_layer(built, made)
    assert sum(row.nbytes for row in rows) == made.nbytes
    (glb,) = [row for row in rows if row.rules == ("GLB102",)]
    assert glb.layer == "model.layers.1.mlp.experts.3.gate_proj"
    assert glb.effects[0].before == pytest.approx(1.833, abs=1e-3)


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_a_wrong_index_is_rebuilt_in_its_own_form(indent: int | None, tmp_path: Path) -> None:
    demo.forge(tmp_path, damaged=False)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["kept"] = "as it is"
    whole = json.dumps(index, indent=indent)
    index["weight_map"].pop("model.layers.0.self_attn.q_proj.weight")
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index, indent=indent))
    mended = mend(tmp_path, Options(), Depth.HEADERS)
    assert not serious(mended.after)
    assert [text.file for text in mended.plan.texts] == [path.name]
    assert json.loads(path.read_text()) == json.loads(whole)
    assert path.read_text().count("\n") == whole.count("\n")


def test_configuration_keeps_its_form(tmp_path: Path) -> None:
    demo.forge(tmp_path, damaged=False)
    path = tmp_path / "config.json"
    before = path.read_text()
    text = before.replace('"lm_head",', '"lm_head.\\u0000backbone.pt_name_sentinel",')
    assert text != before
    path.write_text(text)
    mended = mend(tmp_path, EVERYTHING, Depth.HEADERS)
    assert path.read_text() == before
    assert not serious(mended.after)


def test_the_source_restores_what_would_be_a_guess(tmp_path: Path) -> None:
    """A checkpoint that is its own source: lost blocks come back to what they were."""
    root = damaged(tmp_path)
    whole = make("modelopt-nvfp4").write(tmp_path / "whole")
    ctx, audit = examine(root)
    source = SourceFixes(whole, "auto", ctx)
    built = build(ctx, audit.findings, Options(), source)
    ctx.close()
    source.close()
    assert {r.safety for r in built.repairs} <= {Safety.EXACT, Safety.RESTORED}


REF = TensorRef("t", "U8", (200_000,), "s", 0, 200_000)
STORED = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
WRITES = st.lists(st.tuples(st.integers(0, 150_000), st.integers(1, 50_000), st.integers(0, 255)), max_size=6)


@given(WRITES, st.booleans())
def test_an_overlay_is_the_bytes_after_all_writes(writes: list[tuple[int, int, int]], small: bool) -> None:
    overlay = Overlay(lambda ref, at, length: STORED[at : at + length])
    expected = bytearray(STORED)
    for number, (at, length, byte) in enumerate(writes):
        if small:
            at, length = at % 300, length % 40 + 1
        new = bytes([byte]) * length
        overlay.put(REF, at, new, f"R{number}", "why", Safety(number % 4))
        expected[at : at + length] = new
    assert overlay.read(REF, 0, REF.nbytes) == bytes(expected)
    assert overlay.read(REF, 100, 60_000) == bytes(expected[100:60_100])
    patched = bytearray(STORED)
    end = 0
    for _, segment, old in overlay.changes():
        assert segment.at >= end, "disjoint and ascending"
        end = segment.end
        assert old == STORED[segment.at : segment.end]
        patched[segment.at : segment.end] = piece_of(segment.new, 0, end - segment.at)
    assert patched == expected
    overlay.close()


def test_long_ranges_wait_in_a_scratch_file() -> None:
    overlay = Overlay(lambda ref, at, length: STORED[at : at + length])
    overlay.put(REF, 0, bytes(HELD + 1), "R", "why", Safety.EXACT)
    ((_, segment, _),) = overlay.changes()
    assert not isinstance(segment.new, bytes)
    overlay.close()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_float_bytes(dtype: str) -> None:
    assert float_bytes(1.5, dtype) is not None
    assert float_bytes(1.5, "U8") is None
    if dtype == "BF16":
        assert float_bytes(1.0 + 2**-8, dtype) == bytes.fromhex("803f")


def test_a_second_plan_of_the_repaired_files_is_empty(tmp_path: Path) -> None:
    demo.forge(tmp_path)
    mend(tmp_path, GUESS)
    files = contents(tmp_path)
    mended = mend(tmp_path, GUESS)
    assert not mended.plan.touched
    assert contents(tmp_path) == files


def test_a_fix_that_does_nothing_settles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no repair touched is listed as left, whatever its fix kept quiet about."""
    monkeypatch.setitem(ENTRIES, "GLB102", ENTRIES["GLB102"]._replace(mend=lambda finding, desk: iter(())))
    _, built, _ = planned(damaged(tmp_path), EVERYTHING)
    (left,) = [item for item in built.left if item.rule == "GLB102"]
    assert left.reason == "no repair of it is known as the files are"
    assert "GLB102" not in {code for code, _ in built.settled}
