"""From finding to proposal: what a scan reports is mended from the source, and a second scan is silent about it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from auditor.audit import Depth
from auditor.engine import examine
from auditor.finding import Safety
from repair.fixes.catalogue import RANK
from repair.fixes.desk import Desk, Options
from repair.fixes.proposal import Edit, Left, Proposal
from repair.restore_findings import CODES, proposals
from repair.restore_habits import Habits
from repair.source import Source
from tests.repair.restoring import EXPORTS

LLAMA, ZERO = "llama_nvfp4__source", "llama_nvfp4_zero_weight__source"


@contextmanager
def planned(export, source):
    """The proposals for every finding about values, from the source, and their edits applied to a desk."""
    ctx, audit = examine(str(export), depth=Depth.FULL)
    with Source(EXPORTS / source, ctx.checkpoint, ctx.recognised) as theirs:
        desk = Desk(ctx, Options(), tuple(audit.findings))
        habits = Habits(theirs, desk, ctx.layers)
        ordered = sorted((f for f in audit.findings if f.code in CODES), key=lambda f: RANK.get(f.code, 99))
        found = [p for f in ordered for p in proposals(f, desk, habits)]
        yield found, desk
    ctx.close()


def write(found, root):
    for proposal in found:
        for edit in proposal.changes:
            assert isinstance(edit, Edit)
            with open(root / edit.ref.shard, "r+b") as file:
                file.seek(edit.ref.start + edit.at)
                file.write(edit.new)


@pytest.mark.parametrize(
    ("export", "source", "rules"),
    [
        ("llama_nvfp4_zero_weight", ZERO, {"GLB101"}),
        ("llama_nvfp4_v0440_tiny_blocks", "llama_nvfp4_v0440_tiny_blocks__source", {"SCL102"}),
        ("llama_nvfp4_v0440_amax_small_legacycast", LLAMA, {"SCL101"}),
        ("qwen3moe_nvfp4_dead_experts", "qwen3moe_nvfp4__source", {"GLB102"}),
        ("qwen3moe_nvfp4_zero_expert", "qwen3moe_nvfp4_zero_expert__source", {"GLB101"}),
    ],
)
def test_repair_and_scan_again(tmp_path, export, source, rules):
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / export, root)
    with planned(root, source) as (found, _):
        assert {p.rule for p in found} == rules
        assert all(isinstance(p, Proposal) and p.safety is Safety.RESTORED for p in found)
        assert all(e.after is not None and (e.before is None or e.after <= e.before) for p in found for e in p.effects)
        write(found, root)
    ctx, audit = examine(str(root), depth=Depth.FULL)
    ctx.close()
    assert not [f for f in audit.findings if f.code in CODES]


def test_nan_codes_of_fp8_and_a_broken_scale(tmp_path):
    """Single NaN codes are written anew; where the scale is broken too, the whole layer is."""
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llama_fp8", root)
    sound = (root / "model.safetensors").read_bytes()
    ctx, _ = examine(str(root), depth=Depth.FULL)
    layer = next(one for one in ctx.layers if one.name.endswith("q_proj"))
    other = next(one for one in ctx.layers if one.name.endswith("k_proj"))
    ctx.close()
    hurt = bytearray(sound)
    hurt[layer.codes.start + 7] = 0xFF
    hurt[other.codes.start : other.codes.start + 3] = b"\x7f" * 3
    hurt[other.scales.start : other.scales.start + 4] = b"\x00\x00\xc0\x7f"
    (root / "model.safetensors").write_bytes(bytes(hurt))
    with planned(root, LLAMA) as (found, _):
        assert not [p.reason for p in found if isinstance(p, Left)]
        assert sorted(p.change for p in found) == ["1 weight anew", "codes and scales of 1 layer anew"]
        write(found, root)
    assert (root / "model.safetensors").read_bytes() == sound


def test_values_of_a_float_tensor(tmp_path):
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llama_nvfp4", root)
    sound = (root / "model.safetensors").read_bytes()
    ctx, _ = examine(str(root))
    ref = ctx.checkpoint.tensors["model.layers.0.input_layernorm.weight"]
    ctx.close()
    hurt = bytearray(sound)
    for at, bits in ((0, 0x7FC0), (5, 0xFF80)):
        hurt[ref.start + 2 * at : ref.start + 2 * at + 2] = bits.to_bytes(2, "little")
    (root / "model.safetensors").write_bytes(bytes(hurt))
    with planned(root, LLAMA) as (found, _):
        assert [p.change for p in found] == ["2 values copied"]
        write(found, root)
    assert (root / "model.safetensors").read_bytes() == sound


def test_another_models_source_is_refused(tmp_path):
    with planned(EXPORTS / "llama_nvfp4_zero_weight", "qwen3moe_nvfp4__source") as (found, _):
        assert found
        assert all(isinstance(p, Left) for p in found)
        assert "is not what it was made from" in found[0].reason
