"""Activation scales from other checkpoints: across layouts, the widest of those that share one, the missing by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.checkpoint import open_checkpoint
from quant.errors import RepairError
from repair.make.activations import NoScales, Ones, Taken
from repair.make.layouts import Layout
from repair.make.sources import Sources
from tests.raw import Raw, raw
from tests.repair.make.mxfp4 import cast, draw, gpt_oss, tensors, write

STEM = "model.layers.0.mlp.experts"


def nvfp4(module: str, scale: float | None, ct: bool) -> dict[str, Raw]:
    codes, wide, own = ("weight_packed", "weight_global_scale", "input_global_scale") if ct else (
        "weight", "weight_scale_2", "input_scale")  # fmt: skip
    made = {
        f"{module}.{codes}": raw("U8", np.zeros((2, 8))),
        f"{module}.weight_scale": raw("F8_E4M3", np.full((2, 1), 0x38)),
        f"{module}.{wide}": raw("F32", np.ones(1 if ct else (), np.float32)),
    }
    if scale is not None:
        made[f"{module}.{own}"] = raw("F32", np.full(1 if ct else (), scale, np.float32))
    return made


def taken(root: Path, made: dict[str, Raw]) -> Taken:
    checkpoint = open_checkpoint(write(root, made, {"model_type": "gpt_oss"}))
    return Taken(checkpoint, Sources(checkpoint))


def modules(e: int) -> tuple[str, str]:
    return f"{STEM}.{e}.gate_proj", f"{STEM}.{e}.up_proj"


@given(
    values=st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=2, max_size=4),
    ct=st.booleans(),
    divides=st.booleans(),
)
def test_the_widest_of_those_that_share_one(tmp_path_factory, values, ct, divides):
    names = [f"model.layers.0.mlp.{leaf}_proj" for leaf in ("a", "b", "c", "d")][: len(values)]
    made = {k: v for name, value in zip(names, values, strict=True) for k, v in nvfp4(name, value, ct).items()}
    found = taken(tmp_path_factory.mktemp("a"), made).scale(names, divides)
    stored = np.array(values, np.float32)
    widest = stored.min() if ct else stored.max()
    assert found == (widest if ct == divides else np.float32(1) / widest)
    assert found.dtype == np.float32


@pytest.mark.parametrize("divides", [False, True])
def test_a_fused_scale_serves_every_expert_and_single_ones_the_fused(tmp_path: Path, divides: bool) -> None:
    fused = gpt_oss({"gate_up_proj": draw(np.random.default_rng(0), (2, 4, 1))})
    name = f"{STEM}.gate_up_proj"
    cast(write(tmp_path / "src", fused), tmp_path / "dst", Layout.MODELOPT, Ones())
    held = tensors(tmp_path / "dst")
    held[f"{name}_input_scale"] = raw("F32", np.float32(0.25))
    one = taken(tmp_path / "fused", held)
    for e in range(2):
        assert one.scale(modules(e), divides) == (4 if divides else 0.25)
    assert one.scale([name], divides) == (4 if divides else 0.25)
    apart = {k: v for e in range(2) for m in modules(e) for k, v in nvfp4(m, 0.5 * (e + 1), ct=False).items()}
    every = taken(tmp_path / "apart", apart)
    assert every.scale([m for e in range(2) for m in modules(e)], divides) == 1


def test_what_is_missing_or_unusable_is_named(tmp_path: Path) -> None:
    made = {**nvfp4("a.gate_proj", 0.5, ct=True), **nvfp4("a.up_proj", None, ct=True)}
    with pytest.raises(RepairError, match=r"no NVFP4 activation scale for a\.up_proj"):
        taken(tmp_path / "none", made).scale(["a.gate_proj", "a.up_proj"], divides=True)
    for number, value in enumerate([0.0, -1.0, np.nan, np.inf, 1e-42]):
        bad = taken(tmp_path / f"{number}", nvfp4("a.gate_proj", value, ct=False))
        with pytest.raises(RepairError, match=r"a\.gate_proj\.input_scale: .* is no usable activation scale"):
            bad.scale(["a.gate_proj"], divides=False)
    huge = taken(tmp_path / "huge", nvfp4("a.gate_proj", 3e38, ct=False))
    with pytest.raises(RepairError, match="reciprocal"):
        huge.scale(["a.gate_proj"], divides=True)
    assert huge.scale(["a.gate_proj"], divides=False) == np.float32(3e38)


def test_a_cast_takes_them_before_anything_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "src", gpt_oss({"gate_up_proj": draw(np.random.default_rng(0), (2, 4, 1))}))
    some = {k: v for m in modules(0) for k, v in nvfp4(m, 0.125, ct=False).items()}
    with pytest.raises(RepairError, match=rf"activation scale for {STEM}\.1\.gate_proj"):
        cast(source, tmp_path / "dst", Layout.COMPRESSED_TENSORS, taken(tmp_path / "some", some))
    assert not (tmp_path / "dst.incomplete").exists()
    every = some | {k: v for m in modules(1) for k, v in nvfp4(m, 0.5, ct=False).items()}
    cast(source, tmp_path / "dst", Layout.COMPRESSED_TENSORS, taken(tmp_path / "every", every))
    found = tensors(tmp_path / "dst")
    assert found[f"{STEM}.0.up_proj.input_global_scale"] == raw("F32", np.array([8], np.float32))
    assert found[f"{STEM}.1.gate_proj.input_global_scale"] == raw("F32", np.array([2], np.float32))


def test_the_other_ways() -> None:
    assert NoScales().scale(["a"], divides=True) is None
    assert Ones().scale(["a"], divides=True) == Ones().scale(["a"], divides=False) == np.float32(1)
