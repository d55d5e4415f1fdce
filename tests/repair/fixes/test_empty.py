"""Tensors without elements, and scales that no weight has: a repair of the rest goes on."""

from __future__ import annotations

import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from auditor.audit import Depth
from auditor.engine import examine
from repair.build import build, plan, rewrites
from repair.outofplace import repaired_copy
from tests.forge import Model, make
from tests.layouts import LAYOUTS
from tests.raw import WIDTH, Raw, raw
from tests.repair.mending import EVERYTHING


def mended(model: Model, root: Path) -> set[str]:
    """The codes of what is repaired into a copy, which can be scanned."""
    ctx, audit = examine(model.write(root / "damaged"), depth=Depth.FULL)
    assert not audit.errors
    built = build(ctx, audit.findings, EVERYTHING._replace(rewrite=True))
    repaired_copy(root / "damaged", plan(built), root / "out", rewrites(built))
    ctx.close()
    assert not examine(root / "out", depth=Depth.FULL)[1].errors
    return {repair.rule for repair in built.repairs}


def test_no_global_scale_over_a_nan_block_scale(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    layer = model.layer("model.layers.0.mlp.down_proj")
    model.tensors[layer.global_scale] = Raw("F32", (0,), b"")
    model.poke(layer.scales, 3, b"\x7f")
    assert "SCL101" in mended(model, tmp_path)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_three_dimensional_codes_without_elements(axis: int, tmp_path: Path) -> None:
    model = make("modelopt-3d-llama4").copy()
    layer = next(x for x in model.layers if x.transposed)
    for name in (layer.codes, layer.scales):
        shape = list(model.tensors[name].shape)
        shape[axis] = 0
        model.tensors[name] = Raw(model.tensors[name].dtype, tuple(shape), b"")
    model.tensors[layer.global_scale] = raw("F32", [0.0])
    mended(model, tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_any_tensor_may_lose_an_axis(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        model = make(rng.choice(list(LAYOUTS))).copy()
        for name in rng.sample(sorted(model.tensors), 3):
            old = model.tensors[name]
            shape = list(old.shape) or [1]
            shape[rng.randrange(len(shape))] = rng.choice((0, 0, 1))
            size = math.prod(shape) * WIDTH[old.dtype]
            model.tensors[name] = Raw(old.dtype, tuple(shape), rng.choice((old.data, bytes(size)))[:size])
        with TemporaryDirectory() as folder:
            mended(model, Path(folder))
