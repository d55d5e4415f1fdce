"""What no one consumes stays as it is; what two would take or make is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.checkpoint import open_checkpoint
from auditor.declaration import Activation, Algorithm, Family
from quant.errors import RepairError
from repair.make.assemble import Remade, Wish, assemble
from repair.make.folder import make
from repair.make.layouts import Layout
from repair.make.shard import Fill
from repair.make.sources import Sources
from repair.shardheader import Entry
from tests.raw import raw, shard_bytes, stored

FP8 = Algorithm("FP8", Family.FP8, Activation.STATIC)
HELD = {"a.weight": raw("BF16", [[1.0, 2.0]]), "b.weight": raw("BF16", [[3.0]]), "lm_head.weight": raw("BF16", [[5.0]])}
ONE = Remade(
    "model.safetensors",
    frozenset({"a.weight"}),
    (Entry("a.weight", "F8_E4M3", (1, 2)), Entry("a.weight_scale", "F32", (1,))),
    (lambda: iter([Fill("a.weight", 0, b"12"), Fill("a.weight_scale", 0, bytes(4))]),),
    ("a",),
    FP8,
)


def source(root: Path, **files: bytes) -> Path:
    root.mkdir()
    (root / "model.safetensors").write_bytes(shard_bytes(HELD))
    (root / "config.json").write_text('{"model_type": "x", "quantization_config": {"quant_method": "old"}}')
    for name, content in files.items():
        (root / name.replace("__", ".")).write_bytes(content)
    return root


def assembled(root: Path, *remade: Remade, layout: Layout = Layout.COMPRESSED_TENSORS):
    checkpoint = open_checkpoint(root)
    return assemble(Wish("try", {}, layout), checkpoint, Sources(checkpoint), remade)


def test_the_rest_stays(tmp_path):
    made = make(assembled(source(tmp_path / "src"), ONE), tmp_path / "new")
    found = stored(tmp_path / "new" / "model.safetensors")
    assert found.keys() == {"a.weight", "a.weight_scale", "b.weight", "lm_head.weight"}
    content = (tmp_path / "new" / "model.safetensors").read_bytes()
    for name in ("b.weight", "lm_head.weight"):
        assert content[found[name].start :][:2] == HELD[name].data
    told = json.loads((tmp_path / "new" / "config.json").read_text())
    assert told["model_type"] == "x"
    assert told["quantization_config"]["ignore"] == ["b", "lm_head"]
    assert not (tmp_path / "new" / "model.safetensors.index.json").exists()
    assert made.carried.files == []


def test_index_of_several_shards(tmp_path):
    root = source(tmp_path / "src")
    (root / "model.safetensors").rename(root / "model-00001-of-00002.safetensors")
    (root / "model-00002-of-00002.safetensors").write_bytes(shard_bytes({"c.weight": raw("BF16", [[7.0]])}))
    weight_map = {
        **dict.fromkeys(HELD, "model-00001-of-00002.safetensors"),
        "c.weight": "model-00002-of-00002.safetensors",
    }
    (root / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map})
    )
    make(assembled(root, replace(ONE, home="model-00001-of-00002.safetensors")), tmp_path / "new")
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {**weight_map, "a.weight_scale": "model-00001-of-00002.safetensors"}
    assert index["metadata"]["total_size"] == 2 + 4 + 2 + 2 + 2
    checkpoint = open_checkpoint(tmp_path / "new")
    assert (checkpoint.missing, checkpoint.stray, checkpoint.unopened) == ({}, [], {})


def test_metadata_stays(tmp_path):
    root = source(tmp_path / "src")
    raw_bytes = shard_bytes(HELD).replace(b'{"format":"pt"}', b'{"format":"np"}')
    (root / "model.safetensors").write_bytes(raw_bytes)
    make(assembled(root, ONE), tmp_path / "new")
    assert b'"__metadata__":{"format":"np"}' in (tmp_path / "new" / "model.safetensors").read_bytes()


BAD = {
    "has no tensor nowhere": (replace(ONE, consumed=frozenset({"nowhere"})),),
    "a.weight belongs to two weights": (ONE, replace(ONE, entries=(), tasks=())),
    "two tensors would be called b.weight": (replace(ONE, entries=(Entry("b.weight", "U8", (1,)),)),),
    "nothing to try": (replace(ONE, algorithm=None, modules=()),),
}


@pytest.mark.parametrize("why", BAD)
def test_refused(tmp_path, why):
    with pytest.raises(RepairError, match=why):
        assembled(source(tmp_path / "src"), *BAD[why])


FILES = {
    r"x\.safetensors: .*": {"x__safetensors": b"short"},
    r"config\.json: .*": {"config__json": b"{"},
    r"gone\.safetensors: is named by the index, but is not there": {
        "model__safetensors__index__json": b'{"weight_map": {"a.weight": "gone.safetensors"}}'
    },
    r"model\.safetensors\.index\.json: .*": {"model__safetensors__index__json": b"["},
}


@pytest.mark.parametrize("why", FILES)
def test_a_source_that_cannot_be_read_whole(tmp_path, why):
    with pytest.raises(RepairError, match=f"^{why}$"):
        assembled(source(tmp_path / "src", **FILES[why]), ONE)


def test_one_shard_is_no_checkpoint(tmp_path):
    checkpoint = open_checkpoint(source(tmp_path / "src") / "model.safetensors")
    with pytest.raises(RepairError, match="is one shard"):
        assemble(Wish("try", {}, Layout.MODELOPT), checkpoint, Sources(checkpoint), [ONE])
