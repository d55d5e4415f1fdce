"""Block scales: where the rules begin to speak, and what they propose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from auditor.finding import Finding, Safety
from tests.audits import about, audited, bad, codes
from tests.damages.harness import saturate, set_block, set_float, set_scale
from tests.encode import Made
from tests.forge import Model, make

AT = "model.layers.0.self_attn.o_proj"


def model() -> tuple[Model, Made]:
    fresh = make("modelopt-nvfp4").copy()
    return fresh, fresh.layer(AT)


def finding(damaged: Model, path: Path, code: str, depth: Depth = Depth.SCALES) -> Finding:
    return about(audited(damaged.write(path), depth), code)


@pytest.mark.parametrize(
    ("cases", "safety"),
    [("z", Safety.EXACT), ("zz", Safety.EXACT), ("s", Safety.GUESS), ("o", Safety.GUESS), ("zso", Safety.GUESS)],
)
def test_scl101_tells_the_three_cases_apart(cases: str, safety: Safety, tmp_path: Path) -> None:
    damaged, layer = model()
    for flat, case in enumerate(cases):
        set_scale(damaged, layer.scales, flat, 0x7F if flat % 2 else 0xFF)
        set_block(damaged, layer, flat, {"z": 0x80, "s": 0x77, "o": [0x77] * 7 + [0x07]}[case])
    found = finding(damaged, tmp_path, "SCL101")
    kinds = {"s": "over codes all 0x77", "z": "over zero codes", "o": "over other codes"}
    assert found.count == len(cases)
    for kind, words in kinds.items():
        assert (f"{cases.count(kind)} {words}" in found.message) is (kind in cases)
    assert found.fix is not None
    assert found.fix.safety is safety
    assert {place.old for place in found.places} <= {"0x7F", "0xFF"}


@pytest.mark.parametrize(
    ("spared", "zero", "safety"), [(0, True, Safety.EXACT), (0, False, Safety.GUESS), (1, True, Safety.GUESS)]
)
def test_scl101_a_zero_tensor_is_exact_when_every_block_says_so(
    spared: int, zero: bool, safety: Safety, tmp_path: Path
) -> None:
    damaged, layer = model()
    damaged.fill(layer.codes, 0x77)
    damaged.fill(layer.scales, 0xFF)
    for flat in range(spared):
        set_scale(damaged, layer.scales, flat, 0x38)
    if zero:
        set_float(damaged, layer.global_scale, 0, 0.0)
    found = finding(damaged, tmp_path, "SCL101")
    assert found.fix is not None
    assert found.fix.safety is safety


def test_scl101_where_shapes_disagree_only_the_source_helps(tmp_path: Path) -> None:
    damaged, layer = model()
    damaged.reshape(layer.scales, (64, 3))
    set_scale(damaged, layer.scales, 5, 0x7F)
    found = finding(damaged, tmp_path, "SCL101")
    assert found.fix is not None
    assert "shapes" in found.fix.note


@pytest.mark.parametrize("byte", range(256))
def test_every_scale_byte_over_live_and_zero_codes(byte: int, tmp_path: Path) -> None:
    damaged, layer = model()
    set_scale(damaged, layer.scales, 7, byte)
    set_block(damaged, layer, 7, 0x12)
    set_scale(damaged, layer.scales, 9, byte)
    set_block(damaged, layer, 9, 0x08)
    found = bad(audited(damaged.write(tmp_path)))
    if byte & 0x7F == 0x7F:
        assert found == {("SCL101", layer.scales)}
    elif byte >= 0x80:
        assert found == {("SCL103", layer.scales)}
    else:
        assert found == ({("SCL102", layer.scales)} if byte == 0 else set())


def test_scl102_counts_live_blocks_only(tmp_path: Path) -> None:
    damaged, layer = model()
    for flat in range(20):
        set_scale(damaged, layer.scales, flat, 0)
        set_block(damaged, layer, flat, 0x00 if flat % 2 else 0x77)
    found = finding(damaged, tmp_path, "SCL102")
    assert found.count == 10
    assert [p.index for p in found.places] == [(flat // 4, flat % 4) for flat in range(0, 16, 2)]


@pytest.mark.parametrize(
    ("bytes_", "exact"), [((0x80,), True), ((0x80,) * 30, True), ((0x80,) * 9 + (0x81,), False), ((0xFE,), False)]
)
def test_scl103_minus_zero_alone_is_exact(bytes_: tuple[int, ...], exact: bool, tmp_path: Path) -> None:
    damaged, layer = model()
    for flat, byte in enumerate(bytes_):
        set_scale(damaged, layer.scales, flat, byte)
    fix = finding(damaged, tmp_path, "SCL103").fix
    assert fix is not None
    assert fix.safety is (Safety.EXACT if exact else Safety.RESTORED)


@pytest.mark.parametrize(
    ("top", "near", "speaks"),
    [(7, 0, False), (8, 0, True), (8, 7, True), (8, 8, False), (9, 8, True), (30, 30, False), (31, 30, True)],
)
def test_scl104_eight_and_more_than_the_near_ones(top: int, near: int, speaks: bool, tmp_path: Path) -> None:
    damaged, layer = model()
    saturate(damaged, layer, top, near)
    assert codes(audited(damaged.write(tmp_path))) == (["SCL104"] if speaks else [])


@pytest.mark.parametrize(("live", "speaks"), [(7, False), (8, True)])
def test_scl104_zero_blocks_do_not_count(live: int, speaks: bool, tmp_path: Path) -> None:
    damaged, layer = model()
    hit = saturate(damaged, layer, 40, 0)
    for flat in hit[live:]:
        set_block(damaged, layer, flat, 0x00)
    audit = audited(damaged.write(tmp_path))
    assert codes(audit) == (["SCL104"] if speaks else [])
    if speaks:
        assert about(audit, "SCL104").count == live


def gate_and_up(scales: np.ndarray, other: np.ndarray) -> Model:
    damaged = make("modelopt-nvfp4").copy()
    for leaf, values in (("gate_proj", scales), ("up_proj", other)):
        name = f"model.layers.0.mlp.{leaf}.weight_scale"
        damaged.tensors[name] = damaged.tensors[name]._replace(data=values.astype(np.uint8).tobytes())
    return damaged


@pytest.mark.parametrize(("values", "speaks"), [(7, False), (8, True), (20, True)])
def test_scl105_takes_eight_values(values: int, speaks: bool, tmp_path: Path) -> None:
    same = np.resize(np.arange(0x40, 0x40 + values), 640)
    assert codes(audited(gate_and_up(same, same).write(tmp_path))) == (["SCL105"] if speaks else [])


def test_scl105_a_wide_range_of_few_values_is_no_evidence(tmp_path: Path) -> None:
    same = np.resize([0x20, 0x70], 640)
    assert not bad(audited(gate_and_up(same, same).write(tmp_path)))


@pytest.mark.parametrize("swap", [(0, 8), (1, 9), (0, 632)])
def test_scl105_equal_checksums_are_not_equal_bytes(swap: tuple[int, int], tmp_path: Path) -> None:
    """Two bytes exchanged eight apart leave the sum of the words as it was."""
    scales = np.resize(np.arange(0x40, 0x40 + 31), 640)
    other = scales.copy()
    other[list(swap)] = other[list(swap[::-1])]
    assert scales[swap[0]] != scales[swap[1]]
    assert not bad(audited(gate_and_up(scales, other).write(tmp_path)))


def test_scl105_over_shards(tmp_path: Path) -> None:
    same = np.resize(np.arange(0x40, 0x50), 640)
    for shards in (2, 3, 5):
        audit = audited(gate_and_up(same, same).write(tmp_path / str(shards), shards))
        assert about(audit, "SCL105").related == ("model.layers.0.mlp.up_proj.weight_scale",)


@pytest.mark.parametrize("layout", ["modelopt-mxfp4", "ct-mxfp8", "gpt-oss-mxfp4", "deepseek-fp8-ue8m0"])
@pytest.mark.parametrize("byte", [0, 1, 126, 127, 128, 253, 254, 255])
def test_scl106_e8m0_bytes(layout: str, byte: int, tmp_path: Path) -> None:
    damaged = make(layout).copy()
    layer = damaged.layers[-1]
    set_scale(damaged, layer.scales, 0, byte)
    assert codes(audited(damaged.write(tmp_path))) == (["SCL106"] if byte == 255 else [])


def test_scl107_is_information(tmp_path: Path) -> None:
    damaged = make("gpt-oss-mxfp4").copy()
    layer = damaged.layers[0]
    set_scale(damaged, layer.scales, 4, 0)
    found = finding(damaged, tmp_path, "SCL107")
    assert found.severity.label == "info"
    assert found.count == 1


@pytest.mark.parametrize(("lost", "speaks"), [(1, True), (127, True), (128, False), (256, False)])
def test_scl109_is_about_exceptions(lost: int, speaks: bool, tmp_path: Path) -> None:
    """Sixteen equal weights in half of the blocks are the model's nature."""
    damaged, layer = model()
    for flat in range(lost):
        set_block(damaged, layer, flat, 0x77)
    assert codes(audited(damaged.write(tmp_path), Depth.FULL)) == (["SCL109"] if speaks else [])


@pytest.mark.parametrize("nan", [1, 3])
def test_scl109_leaves_nan_to_scl101(nan: int, tmp_path: Path) -> None:
    """A NaN scale beside them hides no block that was papered over; blocks under NaN scales are SCL101's."""
    damaged, layer = model()
    for flat in range(3):
        set_block(damaged, layer, flat, 0x77)
    for flat in range(nan):
        set_scale(damaged, layer.scales, flat, 0x7F)
    audit = audited(damaged.write(tmp_path), Depth.FULL)
    assert codes(audit) == ["SCL101", "SCL109"][: 2 if nan < 3 else 1]
    assert [(f.count, f.places[0].index) for f in audit.findings if f.code == "SCL109"] == [(2, (0, 1))][: nan < 3]


@pytest.mark.parametrize(("zeros", "lost"), [([50], [5]), ([0, 7, 9], [6, 8]), (range(20), range(20, 50))])
def test_scl109_leaves_out_what_lies_under_zero_scales(
    zeros: Sequence[int], lost: Sequence[int], tmp_path: Path
) -> None:
    """Legal zero blocks beside it change nothing; blocks of 0x77 under a zero scale are SCL102's."""
    damaged, layer = model()
    for flat in (*zeros, *lost):
        set_block(damaged, layer, flat, 0x77)
    for flat in zeros:
        set_scale(damaged, layer.scales, flat, 0)
    set_scale(damaged, layer.scales, 200, 0)
    set_block(damaged, layer, 200, 0)
    found = finding(damaged, tmp_path, "SCL109", Depth.FULL)
    assert found.count == len(lost)
    assert [p.index for p in found.places] == [(flat // 4, flat % 4) for flat in lost[:8]]


def test_scl109_the_blocks_under_zero_scales_are_no_majority(tmp_path: Path) -> None:
    damaged, layer = model()
    for flat in range(256):
        set_scale(damaged, layer.scales, flat, 0x38 if flat < 60 else 0)
        set_block(damaged, layer, flat, 0x77 if flat < 30 else 0)
    assert not [f for f in audited(damaged.write(tmp_path), Depth.FULL).findings if f.code == "SCL109"]
