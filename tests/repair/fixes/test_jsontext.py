"""Edits of JSON text: the parsed value changes as asked, every other character stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.fixes import jsontext
from tests.effort import calls

LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.floats(-2, 2)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=4)
INDENTS = st.sampled_from((None, 0, 1, 4, "\t"))


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every path into a value but the empty one."""
    parts: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    return [p for key, part in parts for p in ((*at, key), *paths(part, (*at, key)))]


def parent(value: Any, path: tuple[str | int, ...]) -> Any:
    """What holds the last key of a path."""
    for key in path[:-1]:
        value = value[key]
    return value


@given(OBJECTS, INDENTS, st.booleans(), LEAVES, st.data())
def test_put_replaces_one_value(value: Any, indent: Any, ascii_: bool, new: Any, data: st.DataObject) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    path = data.draw(st.sampled_from(paths(value)))
    node = jsontext.find(text, path)
    assert node is not None
    done = jsontext.put(text, path, new)
    parent(value, path)[path[-1]] = new
    assert json.loads(done) == value
    assert done.startswith(text[: node.start])
    assert done.endswith(text[node.end :])


@given(OBJECTS, INDENTS, st.data())
def test_drop_takes_out_one_value(value: Any, indent: Any, data: st.DataObject) -> None:
    text = json.dumps(value, indent=indent)
    path = data.draw(st.sampled_from(paths(value)))
    done = jsontext.drop(text, path[:-1], [path[-1]])
    del parent(value, path)[path[-1]]
    assert json.loads(done) == value


@given(st.lists(LEAVES, max_size=6), st.sets(st.integers(0, 7)), INDENTS)
def test_drop_takes_out_several(value: list[Any], gone: set[int], indent: Any) -> None:
    text = json.dumps({"list": value, "z": 1}, indent=indent)
    done = json.loads(jsontext.drop(text, ("list",), gone))
    assert done == {"list": [item for i, item in enumerate(value) if i not in gone], "z": 1}


@given(st.lists(LEAVES, max_size=6), st.dictionaries(st.integers(0, 7), LEAVES), INDENTS)
def test_replace_changes_several(value: list[Any], new: dict[int, Any], indent: Any) -> None:
    text = json.dumps({"list": value}, indent=indent)
    done = jsontext.replace(text, {("list", number): item for number, item in new.items()})
    assert json.loads(done) == {"list": [new.get(i, item) for i, item in enumerate(value)]}


@given(OBJECTS, INDENTS, LEAVES)
def test_put_adds_a_key(value: dict[str, Any], indent: Any, new: Any) -> None:
    done = jsontext.put(json.dumps(value, indent=indent), ("brand new",), new)
    assert json.loads(done) == {**value, "brand new": new}


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=3), INDENTS)
def test_add_extends_a_list(old: list[str], new: list[str], indent: Any) -> None:
    text = json.dumps({"a": 1, "list": old, "z": {}}, indent=indent)
    assert json.loads(jsontext.add(text, ("list",), new)) == {"a": 1, "list": old + new, "z": {}}


@given(OBJECTS, INDENTS, st.data())
def test_rename_changes_a_key(value: dict[str, Any], indent: Any, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(list(value)))
    done = jsontext.rename(json.dumps(value, indent=indent), (), {key: "brand new"})
    assert json.loads(done) == {("brand new" if k == key else k): v for k, v in value.items()}


@pytest.mark.parametrize("indent", [2, 4])
def test_lines_are_kept(indent: int) -> None:
    text = json.dumps({"q": {"ignore": ["a", "b"], "algo": "X"}}, indent=indent) + "\n"
    done = jsontext.add(text, ("q", "ignore"), ["c"])
    assert done == json.dumps({"q": {"ignore": ["a", "b", "c"], "algo": "X"}}, indent=indent) + "\n"
    assert jsontext.drop(done, ("q", "ignore"), [2]) == text


def test_a_byte_order_mark_is_kept() -> None:
    assert jsontext.put('\ufeff{"a": 1}', ("a",), 2) == '\ufeff{"a": 2}'


def test_what_is_not_there_is_left() -> None:
    text = '{"a": [1]}'
    assert jsontext.put(text, ("b", "c"), 1) == text
    assert jsontext.add(text, ("b",), ["x"]) == text
    assert jsontext.drop(text, (), ["b"]) == text
    assert jsontext.replace(text, {("b", 0): 1, ("a", 7): 1}) == text
    assert jsontext.rename(text, (), {"b": "c"}) == text


def test_no_key_is_written_twice() -> None:
    text = '{"a": 1, "a ": 2, " a": 3}'
    assert jsontext.rename(text, (), {"a ": "a", " a": "a"}) == text
    assert jsontext.rename(text, (), {"a ": "b", " a": "b"}) == '{"a": 1, "b": 2, " a": 3}'


def edited(count: int) -> None:
    """Names added, renamed and dropped, ``count`` of each."""
    names = [f"model.layers.{i % 60}.mlp.experts.{i}.gate_proj" for i in range(count)]
    text = jsontext.add(
        '{"ignore": [], "layers": ' + json.dumps({name + " ": 1 for name in names}) + "}", ("ignore",), names
    )
    text = jsontext.rename(text, ("layers",), {name + " ": name for name in names})
    text = jsontext.drop(text, ("ignore",), range(1, len(names)))
    assert json.loads(text) == {"ignore": names[:1], "layers": dict.fromkeys(names, 1)}


def test_many_names_cost_what_their_number_does() -> None:
    assert calls(lambda: edited(6000)) < 3 * calls(lambda: edited(3000))


STRINGS = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=4)


@given(STRINGS, STRINGS, INDENTS, st.booleans(), st.sampled_from(("\n", "\r\n")))
def test_put_table_is_written_as_the_table_was(old: Any, new: Any, indent: Any, ascii_: bool, line: str) -> None:
    before, value = {"a": 1.0, "map": old, "z": [None]}, {"a": 1.0, "map": new, "z": [None]}
    text, wanted = (json.dumps(v, indent=indent, ensure_ascii=ascii_).replace("\n", line) for v in (before, value))
    done = jsontext.put_table(text, ("map",), new)
    assert json.loads(done) == value
    if old and new and text.isascii() == ascii_:
        assert done == wanted
    assert jsontext.put_table(text, ("z",), new) == text


def test_put_table_keeps_the_spelling_of_keys() -> None:
    text = '{"map" : {"\\u007a":"1" ,\n"b":"2"}, "x": 1.0E-6}\r\n\n'
    done = jsontext.put_table(text, ("map",), {"b": "3", "z": "1", "c": "4"})
    assert done == '{"map" : {"b":"3",\n"\\u007a":"1",\n"c":"4"}, "x": 1.0E-6}\r\n\n'
