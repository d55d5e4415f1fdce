from __future__ import annotations

import json

import numpy as np
import pytest

from auditor import scan
from auditor.finding import Severity
from quant.codes import E4M3
from reports import demo


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    demo.forge(folder, damaged=False)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    demo.forge(folder)
    return folder


def test_the_same_bytes_every_time(damaged, tmp_path):
    demo.forge(tmp_path)
    files = sorted(p.name for p in damaged.iterdir())
    assert files == sorted(p.name for p in tmp_path.iterdir())
    assert all((damaged / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_the_format_library_reads_the_shards(sound):
    safetensors = pytest.importorskip("safetensors")
    weight_map = json.loads((sound / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {}
    for name in sorted(set(weight_map.values())):
        stored |= dict(safetensors.deserialize((sound / name).read_bytes()))
    assert sorted(stored) == sorted(weight_map)
    gate = stored["model.layers.1.mlp.experts.3.gate_proj.weight"]
    assert gate["shape"] == [demo.INNER, demo.HIDDEN // 2]


def test_the_weights_come_back(sound):
    """Shared scale and block scales dequantise to the weights within half a step of the largest."""
    w = np.random.default_rng(3).normal(size=(8, 32)).astype(np.float32)
    shared = np.float32(np.abs(w).max() / 2688)
    packed, scales = demo._quantise(w, shared)
    from quant.cast import decode, unpack_nibbles
    from quant.codes import E2M1

    back = decode(E2M1, unpack_nibbles(packed)) * np.repeat(E4M3.values[scales] * shared, 16, axis=-1)
    assert np.abs(back - w).max() < np.abs(w).max() / 5


def test_the_sound_one_is_sound(sound):
    audit = scan(sound)
    assert audit.errors == ()
    assert [f for f in audit.findings if f.severity > Severity.INFO] == []
    assert audit.skipped == ()


def test_each_damage_is_found_where_it_was_planted(damaged):
    audit = scan(damaged)
    serious = {(f.code, f.tensor) for f in audit.findings if f.severity is Severity.ERROR}
    layer = "model.layers.{}"
    assert {
        ("SCL101", layer.format(0) + ".mlp.experts.0.down_proj.weight_scale"),
        ("SCL101", layer.format(0) + ".mlp.experts.2.down_proj.weight_scale"),
        ("SCL101", layer.format(0) + ".self_attn.o_proj.weight_scale"),
    } == {pair for pair in serious if pair[0] == "SCL101"}
    tensors = {tensor for code, tensor in serious if code != "SCL101"}
    assert layer.format(0) + ".mlp.experts.3.down_proj.input_scale" in tensors
    assert any("layers.1.mlp.experts.3." in t and t.endswith("weight_scale_2") for t in tensors)
    assert any("layers.1.mlp.experts.2.down_proj" in t for t in tensors)
    assert len(tensors) == 3
