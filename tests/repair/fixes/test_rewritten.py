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
from repair.build import build, plan, rewrites
from repair.fixes.catalogue import ENTRIES
from repair.fixes.desk import Options
from repair.outofplace import repaired_copy
from tests.damages.table import DAMAGES
from tests.forge import Model, make
from tests.layouts import LAYOUTS
from tests.raw import Raw
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
        for tensor, (dtype, shape, raw) in true.items():
            if now[tensor] != (dtype, shape, raw):  # a scale of its own that went through BF16
                assert name == "D22 global dtype"
                assert now[tensor][:2] == (dtype, shape)
                old, new = (np.frombuffer(r, np.float32) for r in (raw, now[tensor][2]))
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
