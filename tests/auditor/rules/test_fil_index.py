"""Rules about the index and about shards together: each says file, tensor and value on its own defect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Depth
from auditor.filerule import LISTED
from auditor.finding import Finding, Safety, Severity
from tests.auditor.shards import (
    file_findings,
    layer,
    read_index,
    sound,
    write_index,
    write_sharded,
)

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sharded(tmp_path, {A: ["m.0.gate_proj", "m.0.down_proj"], B: ["m.0.up_proj"]})
    return tmp_path


def only(root: Path, code: str, depth: Depth = Depth.HEADERS) -> list[Finding]:
    """Findings of one rule, when no other rule about files has any."""
    found = file_findings(root, depth)
    assert {f.code for f in found} == {code}
    return found


def remap(root: Path, **changes: Any) -> None:
    """Change the index: tensor -> file, None to drop the tensor."""
    content = read_index(root)
    content["weight_map"] = {k: v for k, v in (content["weight_map"] | changes).items() if v is not None}
    content["metadata"] = {}
    write_index(root, **content)


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_in_two_shards(root: Path, same: bool) -> None:
    extra: dict[str, Any] = {"m.0.gate_proj.input_scale": ("F32", [])}
    (root / B).write_bytes(sound(layer("m.0.up_proj") | extra, fill=0x38 if same else 0x39))
    (shallow,) = only(root, "FIL105")
    assert (shallow.severity, shallow.tensor, shallow.shard) == (Severity.WARNING, "m.0.gate_proj.input_scale", B)
    assert f"in {A}, where the index puts it" in shallow.message
    (deep,) = only(root, "FIL105", Depth.SCALARS)
    assert deep.severity is (Severity.WARNING if same else Severity.ERROR)


def test_copies_of_another_shape_are_an_error(root: Path) -> None:
    (root / B).write_bytes(sound(layer("m.0.up_proj") | {"m.0.gate_proj.input_scale": ("F32", [2])}))
    (finding,) = only(root, "FIL105")
    assert finding.severity is Severity.ERROR
    assert "there F32 [], here F32 [2]" in finding.message


def test_many_copies_are_a_few_findings(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {f"t{i}": ("U8", [1]) for i in range(100)}
    for name in (A, B):
        (tmp_path / name).write_bytes(sound(tensors))
    found = [f for f in file_findings(tmp_path) if f.code == "FIL105"]
    assert len(found) == LISTED + 1
    assert sum(f.count for f in found) == 100


def test_the_index_names_a_tensor_in_the_wrong_shard(root: Path) -> None:
    remap(root, **{"m.0.up_proj.weight": A})
    (finding,) = only(root, "FIL106")
    assert (finding.tensor, finding.shard) == ("m.0.up_proj.weight", A)
    assert f"it is in {B}" in finding.message
    assert finding.fix is not None
    assert finding.fix.safety is Safety.EXACT


def test_the_index_names_a_tensor_that_is_nowhere(root: Path) -> None:
    remap(root, **{"m.0.extra.weight": A})
    (finding,) = only(root, "FIL106")
    assert "no shard that can be read holds it" in finding.message
    assert finding.fix is None


def test_an_index_of_another_model_is_a_few_findings(root: Path) -> None:
    remap(root, **{f"other.{i}.weight": B for i in range(500)})
    found = only(root, "FIL106")
    assert len(found) == LISTED + 1
    assert sum(f.count for f in found) == 500


def test_a_missing_shard_says_how_many_tensors_are_gone(root: Path) -> None:
    (root / B).unlink()
    (finding,) = only(root, "FIL107")
    assert (finding.tensor, finding.count) == (B, 4)
    assert finding.message == f"named by {INDEX} for 4 tensors, not in the folder"


def test_shards_without_an_index(root: Path) -> None:
    (root / INDEX).unlink()
    (finding,) = only(root, "FIL108")
    assert finding.message.startswith("2 shards, from here")
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize("indexed", [True, False])
def test_numbers_missing_from_a_series(tmp_path: Path, indexed: bool) -> None:
    names = [f"model-{i:05}-of-00006.safetensors" for i in (1, 2, 4)]
    write_sharded(tmp_path, {name: [f"m.{i}"] for i, name in enumerate(names)})
    if not indexed:
        (tmp_path / INDEX).unlink()
    (finding,) = [f for f in file_findings(tmp_path) if f.code == "FIL109"]
    assert finding.message == "3 of the 6 shards of 'model' are not there: 00003, 00005, 00006"
    assert finding.severity is (Severity.WARNING if indexed else Severity.ERROR)


def test_a_series_of_a_thousand_million_is_counted_not_listed(tmp_path: Path) -> None:
    (tmp_path / "model-00007-of-999999999.safetensors").write_bytes(sound(layer("m")))
    (finding,) = only(tmp_path, "FIL109")
    assert finding.count == 999_999_998
    assert finding.message.endswith("000000001, 000000002, 000000003, 000000004, 000000005, ...")


def test_a_number_beyond_the_series(root: Path) -> None:
    (root / A).rename(root / "model-00003-of-00002.safetensors")
    remap(root, **dict.fromkeys([*layer("m.0.gate_proj"), *layer("m.0.down_proj")], "model-00003-of-00002.safetensors"))
    gap, beyond = only(root, "FIL109")
    assert "1 of the 2 shards" in gap.message
    assert "shard 3 of a series that runs from 1 to 2" in beyond.message


def test_a_tensor_that_the_index_forgot(root: Path) -> None:
    remap(root, **{"m.0.up_proj.weight_scale": None})
    (finding,) = only(root, "FIL110")
    assert (finding.tensor, finding.shard) == ("m.0.up_proj.weight_scale", B)
    assert finding.fix is not None


def test_a_stray_shard_is_one_finding(root: Path) -> None:
    (root / "old.safetensors").write_bytes(sound(layer("m.0.gate_proj") | layer("m.9.gate_proj")))
    (finding,) = only(root, "FIL111")
    assert (finding.tensor, finding.severity) == ("old.safetensors", Severity.WARNING)
    assert "8 tensors, 4 of them also elsewhere" in finding.message


def test_a_second_copy_in_the_publishers_layout_is_information(root: Path) -> None:
    (root / "consolidated.safetensors").write_bytes(sound(layer("layers.0.w1")))
    (finding,) = only(root, "FIL111")
    assert finding.severity is Severity.INFO


def test_a_single_file_beside_shards_is_what_transformers_reads(root: Path) -> None:
    (root / SINGLE).write_bytes(sound(layer("m.0.gate_proj")))
    (finding,) = only(root, "FIL111")
    assert "transformers reads it instead of the shards" in finding.message


def test_an_index_that_leaves_the_folder(root: Path) -> None:
    remap(root, **{"m.0.up_proj.weight": "../../etc/passwd", "m.0.up_proj.weight_scale": 7})
    found = only(root, "FIL112")
    assert [f.message for f in found] == [
        "'m.0.up_proj.weight' is mapped to '../../etc/passwd'",
        "'m.0.up_proj.weight_scale' is mapped to a JSON int",
    ]


@pytest.mark.parametrize("name", [INDEX, "config.json", "hf_quant_config.json"])
@pytest.mark.parametrize(("content", "words"), [("{", "not valid JSON"), ("[]", "not an object")])
def test_json_that_cannot_be_read(root: Path, name: str, content: str, words: str) -> None:
    (root / name).write_text(content)
    (finding,) = [f for f in file_findings(root) if f.code == "FIL113"]
    assert finding.tensor == name
    assert words in finding.message


def test_an_index_without_a_weight_map(root: Path) -> None:
    write_index(root, metadata={})
    assert [f.message for f in file_findings(root) if f.code == "FIL113"] == ["has no weight_map object"]


def test_a_wrong_total_size_is_information(root: Path) -> None:
    write_index(root, **(read_index(root) | {"metadata": {"total_size": 241}}))
    (finding,) = only(root, "FIL114")
    assert finding.message == "metadata.total_size is 241, the tensors have 240 bytes"
    assert finding.severity is Severity.INFO


@pytest.mark.parametrize(
    "size", [*map(repr, (True, 240.5, -0.5)), '"240"', "null", "[240]", "{}", "NaN", "1e400", "9" * 30]
)
def test_a_total_size_that_is_no_number_of_bytes_is_information(root: Path, size: str) -> None:
    text = json.dumps(read_index(root) | {"metadata": {"total_size": "here"}})
    (root / INDEX).write_text(text.replace('"here"', size.replace("True", "true")))
    (finding,) = only(root, "FIL114")
    assert finding.message.endswith("not a number of bytes")
    assert finding.severity is Severity.INFO
    assert finding.fix is not None
    assert finding.fix.safety is Safety.EXACT


@pytest.mark.parametrize("metadata", [{"total_size": 240}, {"total_size": 240.0}, {}, {"total_parameters": "x"}, []])
def test_a_total_size_that_is_right_or_absent(root: Path, metadata: object) -> None:
    write_index(root, **(read_index(root) | {"metadata": metadata}))
    assert not file_findings(root)


def test_a_total_size_of_a_wrong_kind_is_told_where_a_tensor_is_nowhere(root: Path) -> None:
    remap(root, **{"m.0.extra.weight": A})
    write_index(root, **(read_index(root) | {"metadata": {"total_size": None}}))
    (finding,) = [f for f in file_findings(root) if f.code == "FIL114"]
    assert finding.fix is None
