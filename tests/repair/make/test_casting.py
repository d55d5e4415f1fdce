"""What is no sound MXFP4 checkpoint is refused by name; a cast that was cut off is gone on with, table and all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import auditor
from auditor.checkpoint import open_checkpoint
from auditor.finding import Severity
from quant.errors import NumericError, RepairError
from quant.mx_to_nv import Source
from repair.make import casting, folder
from repair.make.activations import Ones
from repair.make.castrow import CastRow, joined, total
from repair.make.layouts import Layout
from repair.make.sources import Sources
from tests.forge import make as forged
from tests.raw import Raw, raw
from tests.repair.make.mxfp4 import CONFIG, cast, draw, gpt_oss, tensors, write

CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
STEM = "model.layers.0.mlp.experts"


def experts(seed: int = 0, spread: int = 9) -> dict[str, Source]:
    rng = np.random.default_rng(seed)
    return {"gate_up_proj": draw(rng, (2, 8, 2), spread), "down_proj": draw(rng, (2, 4, 2), spread)}


def refused(
    root: Path, made: dict[str, Raw], why: str, layout: Layout = CT, kind: type[Exception] = RepairError
) -> None:
    for one in [CT, MODELOPT] if layout is CT else [layout]:
        source = write(root / f"{one.name}-src", made)
        with pytest.raises(kind, match=why):
            cast(source, root / f"{one.name}-dst", one)
        assert not (root / f"{one.name}-dst").exists()


@pytest.mark.parametrize("at", [0, 3, 16, 31])
def test_255_is_named_by_tensor_and_index(tmp_path: Path, at: int) -> None:
    made = gpt_oss(experts())
    name = f"{STEM}.gate_up_proj_scales"
    made[name] = made[name].bytes_at(at, b"\xff")
    index = [int(i) for i in np.unravel_index(at, (2, 8, 2))]
    refused(tmp_path, made, rf"gate_up_proj_scales: 1 of (16|32) E8M0 scales are 255 .* at \{index}", kind=NumericError)
    source = write(tmp_path / "again", made)
    with pytest.raises(NumericError, match=r"^model\.safetensors: .* \(offset \d+\)$") as told:
        cast(source, tmp_path / "new", CT)
    offset = int(str(told.value).rpartition(" ")[2].rstrip(")"))
    assert (source / "model.safetensors").read_bytes()[offset] == 255


WRONG = [("blocks", shape) for shape in ((2, 8, 2, 8), (2, 8, 3, 16), (2, 8, 32), ())]
WRONG += [("scales", shape) for shape in ((2, 8, 3), (2, 4, 2), ())]


@pytest.mark.parametrize(("leaf", "shape"), WRONG)
def test_shapes_that_do_not_fit_are_named(tmp_path: Path, leaf: str, shape: tuple[int, ...]) -> None:
    made = gpt_oss(experts())
    made[f"{STEM}.gate_up_proj_{leaf}"] = raw("U8", np.zeros(shape))
    refused(tmp_path, made, "gate_up_proj_blocks")


@pytest.mark.parametrize(("gone", "named"), [("blocks", "scales"), ("scales", "blocks")])
def test_a_lost_partner_is_named(tmp_path: Path, gone: str, named: str) -> None:
    made = gpt_oss(experts())
    del made[f"{STEM}.down_proj_{gone}"]
    refused(tmp_path, made, rf"down_proj_{named}: has no .*down_proj_{gone} beside it")


def test_no_weights_odd_rows_and_strange_biases(tmp_path: Path) -> None:
    empty = Source(np.zeros((0, 8, 32), np.uint8), np.zeros((0, 8, 2), np.uint8))
    refused(tmp_path / "empty", gpt_oss({"down_proj": empty}, bias=False), "holds no weights")
    odd = draw(np.random.default_rng(0), (1, 5, 1))
    write(tmp_path / "src", gpt_oss({"gate_up_proj": odd}))
    with pytest.raises(RepairError, match="5 rows are no pairs"):
        cast(tmp_path / "src", tmp_path / "dst", CT)
    made = gpt_oss(experts())
    made[f"{STEM}.down_proj_bias"] = raw("BF16", np.zeros(8, np.float32))
    write(tmp_path / "src2", made)
    with pytest.raises(RepairError, match=r"down_proj_bias: shape \[8\] is not \[2, 4\]"):
        cast(tmp_path / "src2", tmp_path / "dst", CT)


def test_a_global_scale_beyond_float32_is_refused(tmp_path: Path) -> None:
    low = draw(np.random.default_rng(0), (1, 2, 1), spread=0, top=8)
    low.scales[:] = 7  # m = 7 - 127 - 8
    low.packed[:] = 0x77
    refused(tmp_path, gpt_oss({"down_proj": low}), r"down_proj_scales: the global scale would be 2\^-128")


def test_no_config_nothing_to_cast_and_an_old_bias(tmp_path: Path) -> None:
    root = write(tmp_path / "src", gpt_oss(experts()))
    (root / "config.json").unlink()
    with pytest.raises(RepairError, match=r"has no config\.json"):
        cast(root, tmp_path / "dst", CT)
    plain = {"lm_head.weight": raw("BF16", np.zeros((4, 4), np.float32))}
    with pytest.raises(RepairError, match="nothing to cast"):
        cast(write(tmp_path / "plain", plain, CONFIG), tmp_path / "dst", CT)
    model = forged("ct-mxfp4").copy()
    model.config["quantization_config"]["version"] = "0.13.0"
    with pytest.raises(RepairError, match=r"from 125.*--select CFG106"):
        cast(model.write(tmp_path / "old"), tmp_path / "dst", CT)


def test_a_source_that_changes_meanwhile(tmp_path: Path) -> None:
    root = write(tmp_path / "src", gpt_oss(experts()))
    with Sources(open_checkpoint(root)) as sources:
        found = casting.plan(open_checkpoint(root), sources, CT)
        os.utime(root / "model.safetensors", ns=(1, 1))
        with pytest.raises(RepairError, match="changed while it was read"):
            folder.make(found.job, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_finished_before_is_in_the_table(tmp_path: Path, layout: Layout, jobs: int) -> None:
    made = {}
    for layer in range(3):
        some = gpt_oss(experts(layer, spread=20), seed=layer)
        made.update({name.replace("layers.0", f"layers.{layer}"): tensor for name, tensor in some.items()})
    root = write(tmp_path / "src", made, shards=3)
    whole = cast(root, tmp_path / "whole", layout, Ones())
    checkpoint = open_checkpoint(root)
    with Sources(checkpoint) as sources:
        job = casting.plan(checkpoint, sources, layout, Ones()).job
        real, calls = folder.put_shard, 0

        def dies(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RepairError("the disk is full")
            return real(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_shard", dies)
            with pytest.raises(RepairError, match="full"):
                folder.make(job, tmp_path / "dst", jobs=jobs)
        assert (tmp_path / "dst.incomplete" / "UNFINISHED.json").exists()
        with pytest.raises(RepairError, match="--resume"):
            folder.make(job, tmp_path / "dst", jobs=jobs)
        again = folder.make(job, tmp_path / "dst", resume=True, jobs=jobs)
    assert again.resumed == 2 if jobs == 1 else again.resumed <= 2  # side by side the others are stopped, too
    assert {row.tensor: row for row in joined(again.rows)} == {row.tensor: row for row in whole}
    assert tensors(tmp_path / "dst") == tensors(tmp_path / "whole")


def test_options_that_differ_are_not_gone_on_with(tmp_path: Path) -> None:
    root = write(tmp_path / "src", gpt_oss(experts()))
    (tmp_path / "dst.incomplete").mkdir()
    with Sources(open_checkpoint(root)) as sources:
        first = casting.plan(open_checkpoint(root), sources, CT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_shard", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                folder.make(first.job, tmp_path / "dst", resume=True)
        other = casting.plan(open_checkpoint(root), sources, CT, Ones())
        with pytest.raises(RepairError, match="begun with other options"):
            folder.make(other.job, tmp_path / "dst", resume=True)


def test_without_mxfp4_it_is_a_change_of_layout(tmp_path: Path) -> None:
    root = forged("modelopt-nvfp4").write(tmp_path / "src")
    with Sources(open_checkpoint(root)) as sources:
        found = casting.plan(open_checkpoint(root), sources, CT)
        assert found.job.kind == "convert"
        folder.make(found.job, tmp_path / "dst")
        with pytest.raises(RepairError, match="no MXFP4 weights"):
            casting.plan(open_checkpoint(root), sources, CT, Ones())
    assert not [f for f in auditor.scan(tmp_path / "dst").findings if f.severity is Severity.ERROR]


def test_fp8_beside_mxfp4_comes_along(tmp_path: Path) -> None:
    """DeepSeek-V4: experts in MXFP4, the other linears in FP8 under power-of-two scales."""
    rng, made = np.random.default_rng(3), {}
    for e in range(2):
        for w in ("w1", "w2", "w3"):
            one = draw(rng, (4, 2))
            made[f"layers.0.ffn.experts.{e}.{w}.weight"] = raw("I8", one.packed.view(np.int8))
            made[f"layers.0.ffn.experts.{e}.{w}.scale"] = raw("F8_E8M0", one.scales)
    codes, scales = rng.integers(0, 0x7E, (256, 128), np.uint8), rng.integers(110, 130, (2, 1), np.uint8)
    made["layers.0.attn.wo.weight"], made["layers.0.attn.wo.scale"] = raw("F8_E4M3", codes), raw("F8_E8M0", scales)
    told = {"quant_method": "fp8", "expert_dtype": "fp4", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    config = {"model_type": "deepseek_v4", "quantization_config": told}
    for layout in Layout:
        root, target = write(tmp_path / f"{layout}-src", made, config), tmp_path / f"{layout}-dst"
        rows = cast(root, target, layout)
        assert len(rows) == 6
        found = tensors(target)
        assert found["layers.0.attn.wo.weight"] == made["layers.0.attn.wo.weight"]
        assert "layers.0.attn.wo.scale" not in found
        wide = found["layers.0.attn.wo.weight_scale"]
        np.testing.assert_array_equal(wide.values().reshape(2, 1), 2.0 ** (scales.astype(float) - 127))
        declared = json.loads((target / "config.json").read_text())["quantization_config"]
        names = declared["quantized_layers"] if layout is MODELOPT else {
            name for group in declared["config_groups"].values() for name in group["targets"]}  # fmt: skip
        assert "layers.0.attn.wo" in names
    shutil.rmtree(tmp_path)


def test_rows_are_added_up() -> None:
    a = CastRow("x", 1, 3, -9, -9, 10, 9, 1.0, 100.0, 0, 5)
    b = CastRow("x", 1, 20, -12, -12, 10, 10, 0.0, 0.0, 1, 0)
    (one,) = joined([a, b])
    assert one == CastRow("x", 2, 20, -12, -9, 20, 19, 1.0, 100.0, 1, 5)
    assert one.snr == 20
    assert b.snr == float("inf")
    assert total([]) is None
