"""JSON text edited in place: values are replaced, added and taken out; every other character stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Path = tuple[str | int, ...]
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_SCALAR = re.compile(r"[^\s,\]}]+")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


@dataclass
class Node:
    """A value's place in the text, and its parts: of an object by key, of a list by number."""

    start: int
    end: int = 0
    kind: str = "scalar"
    parts: dict[str | int, Node] = field(default_factory=dict)
    keys: dict[str | int, int] = field(default_factory=dict)  # where each part's key (or the part itself) begins


def parse(text: str) -> Node:
    """The tree of a JSON text that is known to be valid."""
    return _value(text, _skip(text, 0))


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _string(text: str, at: int) -> int:
    """The end of the string that begins at ``at``."""
    found = _STRING.match(text, at)
    return found.end() if found else at


def _value(text: str, at: int) -> Node:
    node = Node(at)
    if text[at] == '"':
        node.end = _string(text, at)
        return node
    if text[at] not in "[{":
        found = _SCALAR.match(text, at)
        node.end = found.end() if found else at
        return node
    node.kind = "list" if text[at] == "[" else "object"
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        begin = at
        key: str | int = len(node.parts)
        if node.kind == "object":
            end = _string(text, at)
            key = str(json.loads(text[at:end]))
            at = _skip(text, _skip(text, end) + 1)
        part = _value(text, at)
        node.parts[key], node.keys[key] = part, begin
        at = _skip(text, part.end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    node.end = at + 1
    return node


def find(text: str, path: Path) -> Node | None:
    """The value under a path of keys and numbers, None where there is none."""
    return _at(parse(text), path)


def _at(tree: Node, path: Path) -> Node | None:
    node: Node | None = tree
    for key in path:
        node = node.parts.get(key) if node else None
    return node


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _spliced(text: str, cuts: Iterable[tuple[int, int, str]]) -> str:
    """The text with what lies between each start and end replaced."""
    parts: list[str] = []
    at = 0
    for start, end, new in sorted(cuts):
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]])


def put(text: str, path: Path, value: Json) -> str:
    """The text with the value at ``path`` replaced, or added as the last of its object; unchanged without a parent."""
    tree = parse(text)
    if _at(tree, path) is not None:
        return replace(text, {path: value})
    parent = _at(tree, path[:-1])
    if parent is None or parent.kind != "object":
        return text
    return _append(text, parent, [f"{_dump(path[-1])}: {_dump(value)}"])


def replace(text: str, values: Mapping[Path, Json]) -> str:
    """The text with the values at these paths replaced; a path that leads nowhere is passed over."""
    tree = parse(text)
    found = ((_at(tree, path), value) for path, value in values.items())
    return _spliced(text, ((node.start, node.end, _dump(value)) for node, value in found if node is not None))


def put_table(text: str, path: Path, entries: Mapping[str, Json]) -> str:
    """The text with the object at ``path`` holding these entries, in this order, set as its first ones were.

    Keys that were there keep their spelling.  Unchanged where there is no object.
    """
    node = find(text, path)
    if node is None or node.kind != "object":
        return text
    spelt = {key: text[at : _string(text, at)] for key, at in node.keys.items()}
    keys = list(node.parts)
    lead, colon, between, tail = "", ": ", " ", ""
    if keys:
        first, last = node.parts[keys[0]], node.parts[keys[-1]]
        lead = text[node.start + 1 : node.keys[keys[0]]]
        colon = text[_string(text, node.keys[keys[0]]) : first.start]
        between = _between(text, node) if len(keys) > 1 else lead or colon[1:]
        tail = text[last.end : node.end - 1]
    plain = text.isascii()
    shown = (
        (spelt.get(key) or json.dumps(key, ensure_ascii=plain)) + colon + json.dumps(value, ensure_ascii=plain)
        for key, value in entries.items()
    )
    return text[: node.start + 1] + lead + ("," + between).join(shown) + tail + text[node.end - 1 :]


def add(text: str, path: Path, values: Iterable[str]) -> str:
    """The text with these strings at the end of the list at ``path``, written as its last item is."""
    node, shown = find(text, path), [_dump(value) for value in values]
    return text if node is None or node.kind != "list" or not shown else _append(text, node, shown)


def _append(text: str, parent: Node, shown: list[str]) -> str:
    if not parent.parts:
        return text[: parent.start + 1] + ", ".join(shown) + text[parent.end - 1 :]
    numbers = list(parent.parts)
    last = parent.parts[numbers[-1]].end
    lead = text[parent.start + 1 : parent.keys[numbers[0]]] if len(numbers) == 1 else _between(text, parent)
    return text[:last] + "".join(f",{lead}{item}" for item in shown) + text[last:]


def _between(text: str, parent: Node) -> str:
    """The blanks after the last comma of a list or object."""
    before, last = list(parent.parts)[-2:]
    return text[text.index(",", parent.parts[before].end) + 1 : parent.keys[last]]


def drop(text: str, path: Path, keys: Iterable[str | int]) -> str:
    """The text without these parts of the list or object at ``path``, and their commas."""
    parent = find(text, path)
    gone = set(keys).intersection(parent.parts) if parent else set()
    if parent is None or not gone:
        return text
    kept = [key for key in parent.parts if key not in gone]
    if not kept:
        return text[: parent.start + 1] + text[parent.end - 1 :]
    cuts: list[tuple[int, int, str]] = []
    begin = -1  # of a run of parts that go
    for key in parent.parts:
        if key in gone and begin < 0:
            begin = parent.keys[key]
        elif key not in gone and begin >= 0:
            cuts.append((begin, parent.keys[key], ""))
            begin = -1
    if begin >= 0:
        cuts.append((parent.parts[kept[-1]].end, parent.parts[list(parent.parts)[-1]].end, ""))
    return _spliced(text, cuts)


def rename(text: str, path: Path, names: Mapping[str, str]) -> str:
    """The text with keys of the object at ``path`` written anew; never a key that is there already."""
    parent = find(text, path)
    if parent is None or parent.kind != "object":
        return text
    cuts = []
    taken = set(parent.keys)
    for old, new in names.items():
        if old in parent.keys and new not in taken:
            taken.add(new)
            start = parent.keys[old]
            cuts.append((start, _string(text, start), _dump(new)))
    return _spliced(text, cuts)
