"""NaN scales in their three cases, in every layout: told apart by the codes, never by the scale alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.finding import Safety
from repair.fixes.desk import Options
from tests.damages.harness import set_block, set_scale
from tests.forge import make
from tests.layouts import LAYOUTS
from tests.repair.mending import contents, expect_only_planned, mend, planned

E4M3_LAYOUTS = [x for x in LAYOUTS if any(layer.kind == "nvfp4" for layer in make(x).layers)]
FEW = settings(max_examples=4, deadline=None, derandomize=True)
RISKS = {"exact": {"zero"}, "bounded": {"zero"}, "guess": {"zero", "lost", "over"}}
CODES = {"lost": 0x77, "zero": 0x80, "over": 0x31}


@pytest.mark.parametrize("layout", E4M3_LAYOUTS)
@pytest.mark.parametrize("risk", list(RISKS))
def test_three_cases(layout: str, risk: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model = make(layout).copy()
        layer = data.draw(st.sampled_from([x for x in model.layers if x.kind == "nvfp4"]))
        scales = model.tensors[layer.scales]
        flats = data.draw(st.lists(st.integers(0, scales.size - 1), min_size=3, max_size=9, unique=True))
        cases = {flat: ("lost", "zero", "over")[i % 3] for i, flat in enumerate(flats)}
        for flat, case in cases.items():
            set_block(model, layer, flat, CODES[case])
            set_scale(model, layer.scales, flat, data.draw(st.sampled_from((0x7F, 0xFF))))
        root = model.write(tmp_path_factory.mktemp("lost"))
        mended = mend(root, Options(Safety[risk.upper()]))
        expect_only_planned(mended, root)
        raw = contents(root)["model.safetensors"]
        refs = {r.name: r for r in mended.built.desk.ctx.checkpoint.tensors.values()}
        ref, codes = refs[layer.scales], refs[layer.codes]
        shape = scales.shape
        for flat, case in cases.items():
            byte = raw[ref.start + flat]
            packed = [raw[codes.start + at] for at in layer.block_bytes(flat, shape)]
            if case not in RISKS[risk]:
                assert byte & 0x7F == 0x7F
                assert set(packed) == {CODES[case]}
            elif case == "lost":
                assert byte & 0x7F < 0x7E
                assert set(packed) == {0}
            else:
                assert byte == 0x7E
                assert set(packed) == {CODES[case]}

    check()


@pytest.mark.parametrize("layout", E4M3_LAYOUTS)
@pytest.mark.parametrize("signature", [0xFF, 0x7F, 0x7E])
def test_an_all_zero_weight(layout: str, signature: int, tmp_path: Path) -> None:
    """Exact at the lowest risk: codes 0, finite scales, the fused peer's global scale or 1."""
    model = make(layout).copy()
    layer = next(x for x in reversed(model.layers) if x.kind == "nvfp4")
    model.fill(layer.codes, 0x77)
    model.fill(layer.scales, signature)
    glob = model.tensors[layer.global_scale]
    dead = np.float32(np.inf if layer.divides else 0)
    model.tensors[layer.global_scale] = glob._replace(data=np.full(glob.size, dead, "<f4").tobytes())
    root = model.write(tmp_path / "x")
    mended = mend(root, Options())
    assert not [f for f in mended.after.findings if f.code in ("GLB101", "GLB102", "SCL101", "SCL104")]
    ctx = mended.built.desk.ctx
    ref = {r.name: r for r in ctx.checkpoint.tensors.values()}
    raw = contents(root)["model.safetensors"]

    def held(name: str) -> bytes:
        return raw[ref[name].start : ref[name].start + ref[name].nbytes]

    assert not any(held(layer.codes))
    assert set(held(layer.scales)) == {0x7E if signature == 0x7E else 0x38}
    others = [m for m in layer.fused if m != layer.name]
    peers = [np.frombuffer(held(model.layer(m).global_scale), "<f4") for m in others]
    expected = (min if layer.divides else max)(float(p[0]) for p in peers) if peers else 1.0
    assert np.frombuffer(held(layer.global_scale), "<f4").tolist() == [expected] * glob.size


def test_one_block_that_is_not_lost_refuses_the_whole(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    layer = model.layers[0]
    model.fill(layer.codes, 0x77)
    model.fill(layer.scales, 0xFF)
    set_block(model, layer, 5, 0x12)
    model.tensors[layer.global_scale] = model.tensors[layer.global_scale]._replace(data=bytes(4))
    _, built, _ = planned(model.write(tmp_path / "x"), Options())
    assert not [r for r in built.repairs if r.rule == "GLB101"]
    assert any("--source" in item.reason for item in built.left if item.rule == "GLB101")
