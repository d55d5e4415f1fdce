"""JSON files: any bytes give an object or one CheckpointError that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor import jsonfile
from quant.errors import CheckpointError


def load(tmp_path: Path, raw: bytes, limit: int = jsonfile.MAX_CONFIG) -> Any:
    (tmp_path / "c.json").write_bytes(raw)
    return jsonfile.load(tmp_path / "c.json", limit)


def test_an_object_comes_back(tmp_path: Path) -> None:
    raw = b'\xef\xbb\xbf{"a": [1, {"b": null}], "\xc3\xa9": "\\ud83d\\ude00"}'
    assert load(tmp_path, raw) == {"a": [1, {"b": None}], "é": "😀"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "holds a JSON list"),
        (b"3", "holds a JSON int"),
        (b"{", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'{"x": {"a": 1, "b": 0, "a": 1}}', "key 'a' occurs twice"),
        (b'{"a": "\xff"}', "offset 7: byte 0xFF is not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_an_honest_object_is_one_error(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^c\.json: .*{words}"):
        load(tmp_path, raw)


def test_size_and_items_are_bounded_before_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no honest file of this kind"):
        load(tmp_path, b'{"a": 1}', limit=7)
    monkeypatch.setattr(jsonfile, "_MAX_ITEMS", 5)
    assert load(tmp_path, b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(CheckpointError, match="over 5 items"):
        load(tmp_path, b'{"a": [1, 2, 3]}')


def test_other_kinds_of_value_are_taken_for_nothing() -> None:
    assert jsonfile.table([1]) == {}
    assert jsonfile.table({"a": 1}) == {"a": 1}
    assert jsonfile.strings("a") == ["a"]
    assert jsonfile.strings(["a", 1, None, "b"]) == ["a", "b"]
    assert jsonfile.strings({"a": 1}) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60) | st.text('{}[]",:\\u0dE+-1eanultrfs ', max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_an_error(tmp_path: Path, raw: bytes) -> None:
    try:
        content, size = load(tmp_path, raw)
    except CheckpointError:
        return
    assert size == len(raw)
    assert content == json.loads(raw.decode("utf-8-sig"), parse_constant=None) or "NaN" in raw.decode()
    json.dumps(content, ensure_ascii=False).encode()
