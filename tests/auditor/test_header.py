"""The header reader against the format's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from auditor import headertext
from auditor.header import PROBLEMS_KEPT, Flaw, Header, parse, stored_size
from auditor.tensorref import DTYPE_BITS
from tests.auditor.shards import file_bytes, sound

ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
OTHER = {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}


def read(raw: bytes) -> Header:
    length = int.from_bytes(raw[:8], "little")
    return parse(raw[: 8 + min(length, len(raw))], "shard", len(raw))


def read_one(text: str | bytes, data: bytes = b"\0" * 4) -> Header:
    return read(file_bytes(text if isinstance(text, bytes) else text.encode(), data))


def flaws(header: Header) -> set[Flaw]:
    return {problem.flaw for problem in header.problems}


def test_addresses_are_absolute() -> None:
    header = read(sound({"b": ("F32", [2, 3]), "a": ("F8_E4M3", [5]), "s": ("F32", [])}))
    assert [(r.name, r.dtype, r.shape, r.nbytes) for r in header.tensors] == [
        ("b", "F32", (2, 3), 24),
        ("a", "F8_E4M3", (5,), 5),
        ("s", "F32", (), 4),
    ]
    assert [r.start - header.data_start for r in header.tensors] == [0, 24, 29]
    assert header.metadata == {"format": "pt"}
    assert not header.problems
    assert not header.refused


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_has_its_width(dtype: str) -> None:
    shape = [24]
    header = read(sound({"t": (dtype, shape)}))
    assert header.tensors[0].nbytes == 24 * DTYPE_BITS[dtype] // 8
    assert not header.problems


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ('["a"]', 8, "0x5B where '{'"),
        ("", 0, "too short"),
        ("{", 0, "too short"),
        ('{"a"', 12, "ends where ':'"),
        ('{"a":{}}', 9, "lacks dtype"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0]}}', 9, "pair of data_offsets"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}}', 9, "pair of data_offsets"),
        ('{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', 36, "unsigned"),
        ('{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}', 36, "unsigned"),
        ('{"a":{"dtype":"U8","shape":[04],"data_offsets":[0,4]}}', 36, "unsigned"),
        ('{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4]}}', 36, "unsigned"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},}', 61, "0x7D where a string"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]} "b"', 61, "where ',' or '}'"),
        ('{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 27, "occurs twice"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}x', 61, "1 bytes follow"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}\0\0', 61, "2 zero bytes"),
        ('{"__metadata__":{},"__metadata__":{}}', 27, "occurs twice"),
        ('{"__metadata__":{"a":1}}', 29, "not a string"),
        ('{"__metadata__":{"a":{}}}', 29, "not a string"),
        ('{"__metadata__":["a"]}', 24, "where '{'"),
        ('{"a\x01":1}', 11, "0x01 where more of a string"),
        ('{"\\ud800":1}', 9, "surrogate"),
        ('{"\\u12":1}', 9, "escape"),
        ('{"a":{"x":1e999}}', 18, "out of range"),
        ('{"a":{"x":nul}}', 18, "not a JSON value"),
    ],
)
def test_a_broken_grammar_is_named_with_its_offset(text: str, offset: int, words: str) -> None:
    header = read_one(text)
    assert [p.flaw for p in header.problems] == [Flaw.HEADER]
    assert header.problems[0].offset == offset
    assert words in header.problems[0].message
    assert header.refused
    assert not header.tensors


def test_bytes_that_are_not_utf8_are_named() -> None:
    header = read_one(b'{"ab\xff":1}')
    assert (header.problems[0].offset, header.problems[0].message) == (12, "byte 0xFF is not UTF-8")


@pytest.mark.parametrize(
    "text",
    [
        '  {"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}\n ',
        '{ "a" : { "data_offsets" : [ 0 , 4 ] , "shape" : [ 4 ] , "dtype" : "U8" } , "__metadata__" : { } }',
        '{"a": {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [0],'
        ' "data_offsets": [4, 4]}}',
        '{"\\u0061":{"d\\u0074ype":"U8","shape":[4],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}}',
    ],
)
def test_any_legal_spelling_is_read(text: str) -> None:
    header = read_one(text)
    assert not header.problems
    assert header.tensors[0].name == "a"


def test_length_of_the_header_is_bounded() -> None:
    huge = (100_000_001).to_bytes(8, "little")
    assert "limit of 100000000" in parse(huge, "s", 1 << 40).problems[0].message
    past = parse((100).to_bytes(8, "little"), "s", 50)
    assert (past.problems[0].flaw, past.refused != "") == (Flaw.LENGTH, True)
    assert parse(b"\1\2", "s", 2).problems[0].flaw is Flaw.HEADER


@pytest.mark.parametrize(
    ("table", "size", "words"),
    [
        ({"a": ONE | {"dtype": "I4"}}, 4, "dtype 'I4' is unknown"),
        ({"a": ONE | {"shape": [5]}}, 4, "needs 5 bytes, data_offsets 0..4 give 4"),
        ({"a": ONE | {"dtype": "F4", "shape": [7]}}, 4, "whole number of bytes"),
        ({"a": ONE | {"shape": [1 << 40, 1 << 40]}}, 4, "overflows 64 bits"),
        ({"a": ONE | {"shape": [1 << 63, 2, 0], "data_offsets": [0, 0]}}, 0, "overflows 64 bits"),
        ({"a": ONE | {"data_offsets": [4, 0]}}, 4, "run backwards"),
        ({"a": ONE, "b": ONE}, 4, "overlap the tensor before it"),
        (
            {"a": ONE, "b": OTHER | {"data_offsets": [3, 7]}},
            7,
            "bytes 3..7 overlap the tensor before it, which ends at 4",
        ),
        ({"a": ONE, "b": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}, 4, "overlap"),
    ],
)
def test_an_entry_that_contradicts_itself_is_kept_out_of_reach(table: dict[str, Any], size: int, words: str) -> None:
    header = read(file_bytes(table, bytes(size)))
    (problem,) = [p for p in header.problems if p.flaw is Flaw.TENSOR]
    assert words in problem.message
    assert words in header.unreadable[problem.tensor]
    assert problem.tensor not in {ref.name for ref in header.tensors}


def test_an_overflow_counts_only_where_the_reference_overflows() -> None:
    assert stored_size("F32", (1 << 62, 0)) == 0
    assert isinstance(stored_size("F32", (1 << 62,)), str)


def test_a_hole_is_reported_and_the_tensor_is_read() -> None:
    header = read(file_bytes({"a": ONE, "b": OTHER | {"data_offsets": [6, 10]}}, bytes(10)))
    assert [(p.flaw, p.tensor) for p in header.problems] == [(Flaw.TENSOR, "b")]
    assert f"2 bytes before it (from {header.data_start + 4})" in header.problems[0].message
    assert [r.name for r in header.tensors] == ["a", "b"]


def test_one_wrong_entry_does_not_condemn_its_neighbours() -> None:
    table = {"a": ONE, "b": OTHER | {"data_offsets": [4, 1 << 50]}, "c": OTHER | {"data_offsets": [8, 12]}}
    header = read(file_bytes(table, bytes(12)))
    assert list(header.unreadable) == ["b"]
    assert [r.name for r in header.tensors] == ["a", "c"]


def test_a_truncated_file_is_one_problem_and_names_its_tensors() -> None:
    raw = sound({"a": ("U8", [4]), "b": ("U8", [8]), "c": ("U8", [8])})
    header = read(raw[:-9])
    assert [p.flaw for p in header.problems] == [Flaw.LENGTH]
    assert "2 of 3 tensors cannot be read, the first 'b'" in header.problems[0].message
    assert list(header.unreadable) == ["b", "c"]
    assert header.problems[0].offset == len(raw) - 9


def test_bytes_after_the_last_tensor_are_a_problem() -> None:
    raw = sound({"a": ("U8", [4])})
    header = read(raw + b"!!")
    assert [(p.flaw, p.offset) for p in header.problems] == [(Flaw.LENGTH, len(raw))]
    assert "2 bytes after the last tensor" in header.problems[0].message


def test_of_two_equal_names_the_last_counts_as_in_the_reference() -> None:
    text = '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"\\u0061":' + json.dumps(ONE) + "}"
    header = read_one(text)
    assert [(p.flaw, p.offset) for p in header.problems] == [(Flaw.DUPLICATE, 8 + text.index('"\\u'))]
    assert [r.nbytes for r in header.tensors] == [4]


def test_unknown_keys_are_walked_over_and_noted() -> None:
    header = read_one('{"a":{"x":[1,{"y":null},"\\"",-1.5e3,true],"dtype":"U8","shape":[4],"data_offsets":[0,4]}}')
    assert flaws(header) == {Flaw.FOREIGN}
    assert [r.name for r in header.tensors] == ["a"]


def test_a_million_bad_entries_cost_a_few_messages() -> None:
    bad = ",".join(f'"t{i}":{{"dtype":"U8","shape":[4],"data_offsets":[8,4]}}' for i in range(20_000))
    header = read_one("{" + bad + "}")
    assert header.counts[Flaw.TENSOR] == 20_000
    assert len(header.problems) <= 2 * PROBLEMS_KEPT
    assert len(header.unreadable) == 20_000
    assert len(set(header.unreadable.values())) <= PROBLEMS_KEPT + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a":' + '{"a":' * 10_000, "nested too deeply"),
        ('{"a":{"x":' + "[" * 10_000, "nested too deeply"),
        ('{"a":{"x":[' + "1," * 600_000, "under keys that the format does not have"),
        ('{"a":{"shape":[' + "1," * 100_000, "more than 64 numbers"),
        ('{"' + "n" * 70_000 + '":1}', "a name of 70000 bytes"),
        ('{"a":{"dtype":"' + "U" * 70_000 + '"}}', "a name of 70000 bytes"),
    ],
)
def test_hostile_headers_stop_the_reader_early(text: str, words: str) -> None:
    header = read_one(text)
    assert words in header.refused


def test_entries_and_metadata_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headertext, "MAX_ENTRIES", 3)
    many = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(4)}
    assert "more than 3 tensors" in read(file_bytes(many)).refused
    assert "more than 3 metadata" in read(file_bytes({"__metadata__": {str(i): "" for i in range(4)}})).refused
    assert not read(file_bytes({"__metadata__": dict.fromkeys("abc", "")})).refused
    twice = "{" + ",".join(['"a":' + json.dumps(ONE)] * 5) + "}"
    assert read_one(twice).refused
