"""The index, rebuilt: nothing that it knew is lost, and everything else stays as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auditor.audit import Depth
from repair.fixes.desk import Options
from reports.cli import app
from tests.auditor.shards import entries, file_bytes, layer, read_index, sound, write_sharded
from tests.repair.mending import Mended, mend, serious

INDEX = "model.safetensors.index.json"
ONE, TWO, EXTRA = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "extra.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sharded(tmp_path, {ONE: ["a.q_proj", "a.o_proj"], TWO: ["b.q_proj", "b.o_proj"]})
    return tmp_path


def change(root: Path, **entries: str | None) -> None:
    """Entries of the index set, or with None taken out; `__` stands for a dot."""
    content = read_index(root)
    for name, shard in entries.items():
        content["weight_map"].pop(name.replace("__", "."), None)
        if shard is not None:
            content["weight_map"][name.replace("__", ".")] = shard
    (root / INDEX).write_text(json.dumps(content))


def mended(root: Path) -> Mended:
    return mend(root, Options(), Depth.HEADERS)


def test_entries_of_what_no_shard_holds_stay(root: Path) -> None:
    """Else the new index would hide that a weight is gone."""
    change(root, a__up_proj__weight=ONE, b__o_proj__weight=None, b__q_proj__weight=ONE)
    done = mended(root)
    assert done.built.settled == [("FIL110", "b.o_proj.weight")]
    assert read_index(root)["weight_map"]["a.up_proj.weight"] == ONE
    assert read_index(root)["weight_map"]["b.o_proj.weight"] == TWO
    assert serious(done.after) == {("FIL106", "a.up_proj.weight")} == done.remaining()


def test_entries_of_tensors_that_cannot_be_read_stay(root: Path) -> None:
    table = entries(layer("b.q_proj") | layer("b.o_proj"))
    table["b.q_proj.weight"]["dtype"] = "F7"
    size = max(entry["data_offsets"][1] for entry in table.values())
    (root / TWO).write_bytes(file_bytes(table, bytes(size)))
    change(root, b__o_proj__weight=None)
    mended(root)
    assert read_index(root)["weight_map"]["b.q_proj.weight"] == TWO


@pytest.mark.parametrize("beside", [(), ("c.q_proj.weight",)])
def test_a_file_is_taken_in_when_all_it_holds_is_the_models(root: Path, beside: tuple[str, ...]) -> None:
    """A shard that was renamed; with a tensor besides that the index never knew, a person has to say what it is."""
    moved = layer("b.o_proj")
    (root / TWO).write_bytes(sound(layer("b.q_proj")))
    (root / EXTRA).write_bytes(sound(moved | dict.fromkeys(beside, ("BF16", [4]))))
    before = read_index(root)["weight_map"]
    done = mended(root)
    after = read_index(root)["weight_map"]
    assert after.keys() == before.keys()
    if beside:
        assert after == before
        assert {code for code, _ in serious(done.after)} == {"FIL106", "FIL111"}
    else:
        assert after == before | dict.fromkeys(moved, EXTRA)
        assert not serious(done.after)


def test_what_the_folder_holds_twice_is_not_taken_in(root: Path) -> None:
    """The stray file holds another copy of what a shard holds: not a shard that was renamed."""
    (root / TWO).write_bytes(sound(layer("b.q_proj")))
    (root / EXTRA).write_bytes(sound(layer("b.q_proj") | layer("b.o_proj")))
    before = read_index(root)
    done = mended(root)
    assert read_index(root) == before
    assert ("FIL106", "b.o_proj.weight") in done.remaining()


def test_a_renamed_shard_is_known_by_what_it_holds(root: Path) -> None:
    """Only that its number is gone from the series is still said."""
    before = read_index(root)["weight_map"]
    (root / TWO).rename(root / "model-00002-of-00002 (1).safetensors")
    done = mended(root)
    assert ("FIL107", TWO) in serious(done.before)
    assert serious(done.after) == {("FIL109", ONE)}
    assert read_index(root)["weight_map"].keys() == before.keys()


def test_a_missing_shard_is_not_explained_away(root: Path) -> None:
    """Some of its tensors are elsewhere, one is nowhere."""
    before = read_index(root)
    (root / TWO).unlink()
    (root / EXTRA).write_bytes(
        sound({n: s for n, s in (layer("b.q_proj") | layer("b.o_proj")).items() if n[-2:] != "_2"})
    )
    done = mended(root)
    assert read_index(root) == before
    assert ("FIL107", TWO) in done.remaining()


@pytest.mark.parametrize("kept", [{ONE}, set()])
def test_a_forgotten_shard_of_the_series_is_named_again(kept: set[str], root: Path) -> None:
    content = read_index(root)
    whole = content["weight_map"]
    (root / INDEX).write_text(json.dumps(content | {"weight_map": {n: f for n, f in whole.items() if f in kept}}))
    done = mended(root)
    assert {code for code, _ in serious(done.before)} == {"FIL110"}
    assert not serious(done.after)
    assert read_index(root)["weight_map"] == whole


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_all_but_the_entries_stays_as_it_was_written(root: Path, line: str) -> None:
    lines = json.dumps({"metadata": {"total_size": 1, "x": 0}, "weight_map": read_index(root)["weight_map"]}, indent=3)
    text = lines.replace('"x": 0', '"x": 1.0E-6').replace("a.q_proj.weight_scale_2", "a.\\u0071_proj.weight_scale_2")
    text = "\ufeff" + text.replace("\n", line) + line * 2
    (root / INDEX).write_bytes(text.replace(f'"b.q_proj.weight": "{TWO}"', f'"b.q_proj.weight": "{ONE}"').encode())
    mended(root)
    held = sum(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in root.glob("*s"))
    assert (root / INDEX).read_bytes().decode() == text.replace('"total_size": 1,', f'"total_size": {held},')


def test_a_new_index_names_what_the_repair_adds(tmp_path: Path) -> None:
    """Several shards without an index, and an activation scale that is missing."""
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    experts = [f"model.layers.0.mlp.experts.{n}.down_proj" for n in range(3)]
    write_sharded(root, {ONE: experts[:2], TWO: experts[2:]})
    (root / INDEX).unlink()
    lacking = {n: s for n, s in layer(experts[2]).items() if not n.endswith("input_scale")}
    (root / TWO).write_bytes(sound(lacking))
    done = CliRunner().invoke(app, ["repair", str(root), "--out", str(out), "--risk", "guess", "--write"])
    assert read_index(out)["weight_map"][f"{experts[2]}.input_scale"] == TWO, done.output
