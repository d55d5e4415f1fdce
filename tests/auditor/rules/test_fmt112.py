"""Gaps in the numbers of layers and experts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Depth
from auditor.engine import scan
from tests.auditor.shards import entries, file_bytes, layer, sound, write_sharded
from tests.forge import make
from tests.layouts import LAYOUTS

FILE = "model.safetensors"


def gaps(root: Path, names: Sequence[str], **config: Any) -> list[tuple[str, str, int]]:
    (root / FILE).write_bytes(sound({n: s for name in names for n, s in layer(name).items()}))
    (root / "config.json").write_text(json.dumps(config))
    return found(root)


def found(root: Path) -> list[tuple[str, str, int]]:
    audit = scan(root, depth=Depth.HEADERS)
    assert audit.errors == ()
    return [(f.tensor, f.message, f.count) for f in audit.findings if f.code == "FMT112"]


def experts(*numbers: int, layer: int = 0) -> list[str]:
    return [f"model.layers.{layer}.mlp.experts.{n}.up_proj" for n in numbers]


def test_an_expert_that_is_gone(tmp_path: Path) -> None:
    names = experts(0, 1, 4) + experts(0, 1, 2, 3, 4, layer=1)
    assert gaps(tmp_path, names) == [
        (f"{experts(1)[0]}.input_scale", "of model.layers.0.mlp.experts.0 to 4 nothing is stored for 2, 3", 2)
    ]


def test_a_layer_that_is_gone(tmp_path: Path) -> None:
    ((_, message, count),) = gaps(tmp_path, [f"model.layers.{n}.mlp.up_proj" for n in (0, 2)])
    assert (message, count) == ("of model.layers.0 to 2 nothing is stored for 1", 1)


@pytest.mark.parametrize(
    "names",
    [
        experts(3, 4, 5),  # one rank's experts
        ["model.layers.61.mlp.up_proj"],  # the draft model that predicts further tokens
        ["model.layers.0.mlp.0.weight", "model.layers.0.mlp.2.weight"],  # an activation between two of a sequence
        ["projector.layers.0", "projector.layers.2"],
        ["visual.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"],
        ["encoder.layers.0.up_proj", *(f"decoder.layers.{n}.up_proj" for n in range(2))],
    ],
)
def test_numbers_that_need_not_begin_or_go_on(names: list[str], tmp_path: Path) -> None:
    assert gaps(tmp_path, names) == []


def test_where_blocks_may_be_empty_nothing_is_said(tmp_path: Path) -> None:
    assert gaps(tmp_path, ["model.layers.0.up_proj", "model.layers.2.up_proj"], block_configs=[]) == []


def test_what_cannot_be_read_is_there_and_a_missing_shard_says_enough(tmp_path: Path) -> None:
    table = entries(layer("model.layers.0.q") | layer("model.layers.1.q") | layer("model.layers.2.q"))
    for name in layer("model.layers.1.q"):
        table[name]["dtype"] = "F7"
    (tmp_path / FILE).write_bytes(file_bytes(table, bytes(max(e["data_offsets"][1] for e in table.values()))))
    assert found(tmp_path) == []
    (tmp_path / FILE).unlink()
    write_sharded(tmp_path, {"a.safetensors": ["layers.0.q", "layers.2.q"], "b.safetensors": ["layers.1.q"]})
    (tmp_path / "b.safetensors").unlink()
    assert found(tmp_path) == []


def test_one_of_several_shards_is_not_the_whole(tmp_path: Path) -> None:
    gaps(tmp_path, ["layers.0.q", "layers.2.q"])
    assert found(tmp_path)
    assert found(tmp_path / FILE) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_healthy_layouts_have_no_gap(layout: str, tmp_path: Path) -> None:
    assert found(make(layout).write(tmp_path)) == []
