"""Weights stored [K, N] are compared as they lie, and give what they give the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from auditor.checkpoint import open_checkpoint
from quant import mx, mx_to_nv
from quant.errors import CheckpointError
from quant.scheme import MXFP4
from repair import distance_read, source_codes
from repair.distance import compare_checkpoints
from repair.distance_across import beside, whole_lines
from repair.distance_pairs import pair_up
from repair.restore_pieces import Buffered
from tests.raw import Raw, raw, shard_bytes

NAME = "model.layers.0.mlp.experts.gate_up_proj"
EXPERTS, ROWS, COLUMNS = 2, 96, 128


def folder(root: Path, tensors: dict[str, Raw]) -> str:
    root.mkdir()
    (root / "model.safetensors").write_bytes(shard_bytes(tensors))
    (root / "config.json").write_text('{"model_type": "gpt_oss"}')
    return str(root)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((EXPERTS, ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture(scope="module")
def paths(tmp_path_factory, weights) -> dict[str, str]:
    root = tmp_path_factory.mktemp("across")
    q = mx.quantise(weights, MXFP4)
    nv = mx_to_nv.cast(mx_to_nv.Source(q.stored, np.asarray(q.scales))).quantised
    u8 = lambda a, kind="U8": Raw(kind, a.shape, np.ascontiguousarray(a).tobytes())  # noqa: E731
    return {
        "bf16": folder(root / "bf16", {NAME: raw("BF16", weights.swapaxes(1, 2))}),
        "f16": folder(root / "f16", {NAME: raw("F16", weights.swapaxes(1, 2))}),
        "mxfp4": folder(root / "mxfp4", {
            f"{NAME}_blocks": u8(q.stored.reshape(EXPERTS, ROWS, COLUMNS // 32, 16)), f"{NAME}_scales": u8(q.scales),
        }),
        "nvfp4": folder(root / "nvfp4", {
            NAME: u8(nv.stored.swapaxes(1, 2)),
            f"{NAME}_weight_scale": u8(np.asarray(nv.scales).swapaxes(1, 2), "F8_E4M3"),
            f"{NAME}_weight_scale_2": raw("F32", np.asarray(nv.global_scale).reshape(())),
        }),
    }  # fmt: skip


@pytest.mark.parametrize("piece", [1 << 21, 3000])
@pytest.mark.parametrize("a", ["bf16", "f16", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("b", ["mxfp4", "nvfp4"])
def test_as_they_lie(paths, weights, monkeypatch, a, b, piece):
    monkeypatch.setattr(source_codes, "_TURNED", 0 if piece == 3000 else 1 << 30)  # by the kernel, and not
    monkeypatch.setattr(distance_read, "PIECE", piece)
    monkeypatch.setattr(distance_read, "WIDE", 4 * piece)
    (pair,) = pair_up(paths[a], paths[b]).pairs
    assert whole_lines(pair) == (b == "nvfp4" and a != "mxfp4")
    assert beside(pair) == (b == "mxfp4" and a in ("bf16", "f16"))
    found = compare_checkpoints(paths[a], paths[b], worst=3)
    (row,) = found.tensors
    assert not found.unread
    assert row.found.blocks == weights.size // (32 if b == "mxfp4" else 16)
    if "f" in a[:2]:
        held = raw("BF16" if a == "bf16" else "F16", weights).values().astype(np.float64)
        dense = mx.quantise(weights, MXFP4).weights().astype(np.float64)  # and the cast changes none of it
        squared = (held - dense) ** 2
        assert row.sums.squared == pytest.approx(squared.sum(), rel=1e-12)
        assert row.sums.largest == np.sqrt(squared.max())
        assert row.sums.product == pytest.approx((held * dense).sum(), rel=1e-12)
        wide = 32 if b == "mxfp4" else 16
        blocks = squared.reshape(EXPERTS, ROWS, -1, wide).sum(-1)
        for spot, place in zip(row.worst, np.argsort(-blocks, axis=None)[:3], strict=True):
            expert, at, block = np.unravel_index(place, blocks.shape)
            assert (spot.expert, spot.rows[0], spot.columns) == (expert, at, (block * wide, block * wide + wide))
            assert spot.error == pytest.approx(blocks[expert, at, block], rel=1e-12)
    else:
        assert row.found.exact == row.found.blocks


def test_what_does_not_fit_is_turned(paths):
    (pair,) = pair_up(paths["bf16"], paths["nvfp4"]).pairs
    assert whole_lines(pair)
    region = pair.regions[0]
    alternating = replace(region, rows=range(0, ROWS, 2), into=range(0, ROWS, 2))
    uneven = replace(region, rows=range(8), into=range(8))
    for other in (alternating, uneven, replace(region, transposed=False)):
        assert not whole_lines(replace(pair, regions=(other,)))
    assert not whole_lines(replace(pair, block=(2, 16)))
    assert not whole_lines(replace(pair, layer=None))


def test_memory_is_used_again(paths):
    checkpoint = open_checkpoint(paths["bf16"])
    ref, rooms = checkpoint.tensors[NAME], []
    content = (Path(paths["bf16"]) / ref.shard).read_bytes()[ref.start : ref.start + ref.nbytes]
    with Buffered(checkpoint, 1, rooms) as files:
        files.again()
        assert rooms == []
        for _ in range(3):
            one, two = files.array(ref, 3, 100), files.table(ref, 10, 50, 7, 20)
            assert bytes(one) == content[3:103]
            assert [bytes(line) for line in two] == [content[at : at + 7] for at in range(10, 1010, 50)]
            assert not one.flags.writeable
            kept = files._room
            files.again()
        assert len(rooms) == 1
        assert rooms[0] is kept
        assert np.shares_memory(files.array(ref, 0, 8), kept)
        for at, length in ((-1, 2), (0, ref.nbytes + 1), (ref.nbytes, 1)):
            with pytest.raises(CheckpointError, match="outside the tensor"):
                files.array(ref, at, length)
