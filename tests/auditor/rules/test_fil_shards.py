"""Rules about single files: each is silent on a sound checkpoint, and says file, tensor and value on its own defect."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from auditor.audit import Depth
from auditor.filerule import LISTED
from auditor.finding import Finding, Severity
from auditor.rule import all_rules
from tests.auditor.shards import (
    codes,
    entries,
    file_bytes,
    file_findings,
    sound,
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


@pytest.mark.parametrize("depth", list(Depth))
def test_a_sound_checkpoint_has_no_findings(root: Path, depth: Depth) -> None:
    assert codes(root, depth) == []
    assert codes(root / A, depth) == []
    assert codes(root / INDEX, depth) == []


def test_every_rule_about_files_has_its_page() -> None:
    rules = [rule for rule in all_rules() if rule.code.startswith("FIL")]
    assert len(rules) == 19
    for rule in rules:
        page = rule.page()
        for section in ("What it checks", "Why it matters", "What engines do", "Fix", "References"):
            assert f"## {section}" in page
        assert rule.needs is Depth.HEADERS


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda raw: raw[:5], "FIL101", "offset 0: the file holds 5 bytes"),
        (lambda raw: b"", "FIL101", "holds 0 bytes"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "FIL101", "over the format's limit"),
        (lambda raw: b"\xff" * 8 + raw[8:], "FIL101", "18446744073709551615 is over the format's limit of 100000000"),
        (lambda raw: raw.replace(b'"U8"', b"'U8'", 1), "FIL101", "0x27 where a string should be"),
        (lambda raw: raw.replace(b'"pt"', b"1234"), "FIL101", "metadata 'format' is not a string"),
        (lambda raw: raw.replace(b"m.0", b"m.\xff", 1), "FIL101", "0xFF is not UTF-8"),
        (lambda raw: raw + b"\0", "FIL102", "1 bytes after the last tensor"),
        (lambda raw: raw[:-1], "FIL102", "1 of 4 tensors cannot be read, the first 'm.0.up_proj.input_scale'"),
        (lambda raw: raw[:100], "FIL102", "reaches past the end of the file (100 bytes)"),
        (lambda raw: raw.replace(b"F8_E4M3", b"F8_E4M9"), "FIL103", "dtype 'F8_E4M9' is unknown"),
        (lambda raw: raw.replace(b'"F32"', b'"F16"', 1), "FIL103", "needs 2 bytes, data_offsets 72..76 give 4"),
        (lambda raw: raw.replace(b"[4,16]", b"[6,16]", 1), "FIL103", "needs 96 bytes, data_offsets 0..64 give 64"),
        (lambda raw: raw.replace(b"[0,64]", b"[64,0]", 1), "FIL103", "run backwards"),
    ],
)  # fmt: skip
def test_a_damaged_shard(root: Path, damage: Callable[[bytes], bytes], code: str, words: str) -> None:
    raw = (root / B).read_bytes()
    (root / B).write_bytes(damage(raw))
    found = [f for f in file_findings(root) if f.code == code]
    assert [f.shard for f in found][:1] == [B]
    assert any(words in f.message and "offset" in f.message for f in found), found
    assert all(f.severity is Severity.ERROR for f in found)


def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    one = json.dumps(entries({"a.weight": ("U8", [4])}))[1:-1]
    (tmp_path / SINGLE).write_bytes(file_bytes(f"{{{one},{one}}}".encode(), bytes(4)))
    (finding,) = only(tmp_path, "FIL104")
    assert (finding.tensor, finding.shard) == ("a.weight", SINGLE)
    assert "here and at offset 9" in finding.message


def test_unknown_keys_are_information(tmp_path: Path) -> None:
    table = entries({"a.weight": ("U8", [4])})
    table["a.weight"]["note"] = "x"
    (tmp_path / SINGLE).write_bytes(file_bytes(table, bytes(4)))
    (finding,) = only(tmp_path, "FIL118")
    assert finding.severity is Severity.INFO


def test_files_that_cannot_be_opened(root: Path) -> None:
    (root / "folder.safetensors").mkdir()
    (root / "gone.safetensors").symlink_to("nowhere")
    os.mkfifo(root / "pipe.safetensors")
    found = [f for f in file_findings(root) if f.code == "FIL115"]
    assert [f.tensor for f in found] == ["folder.safetensors", "gone.safetensors", "pipe.safetensors"]
    assert [f.severity for f in found] == [Severity.ERROR] * 3


@pytest.mark.parametrize("char", ["\n", "\x1b", "\x9b", "\u202e", "\u200b", "\u2028", "\ufeff"])
def test_names_with_odd_characters(tmp_path: Path, char: str) -> None:
    (tmp_path / SINGLE).write_bytes(sound({f"a{char}b.weight": ("U8", [1])}))
    (finding,) = only(tmp_path, "FIL116")
    assert finding.severity is Severity.WARNING
    assert f"U+{ord(char):04X}" in finding.message
    assert char not in finding.message


@pytest.mark.parametrize("name", ["é.weight", "重み", "a b", "m.0:weight", "😀", "ﬀ", "a\xa0b"])
def test_names_in_any_script_are_fine(tmp_path: Path, name: str) -> None:
    (tmp_path / SINGLE).write_bytes(sound({name: ("U8", [1])}))
    assert codes(tmp_path) == []


def test_odd_file_names_and_metadata_keys(tmp_path: Path) -> None:
    table = {"__metadata__": {"a\tb": "c"}} | entries({"t": ("U8", [1])})
    (tmp_path / "new\nline.safetensors").write_bytes(file_bytes(table, b"\0"))
    found = only(tmp_path, "FIL116")
    assert {f.message for f in found} == {"the file's name holds U+000A", "metadata key 'a\\tb' holds U+0009"}


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")).write_bytes(sound({"t": ("U8", [1])}))
    (finding,) = only(tmp_path, "FIL116")
    assert finding.message == "the file's name holds U+DCFF"


def test_an_empty_shard(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(file_bytes(b"{}"))
    (finding,) = only(tmp_path, "FIL117")
    assert finding.message == "10 bytes and no tensor"


def test_a_header_full_of_errors_is_a_few_findings(tmp_path: Path) -> None:
    table = {f"\x01t{i}": {"dtype": "I4", "shape": [1], "data_offsets": [0, 1]} for i in range(5_000)}
    (tmp_path / SINGLE).write_bytes(file_bytes(table, b"\0"))
    found = file_findings(tmp_path)
    assert [sum(f.count for f in found if f.code == code) for code in ("FIL103", "FIL116")] == [5_000, 5_000]
    assert len(found) == 2 * (LISTED + 1)
