"""JSON text edited in place: values are replaced, added and taken out; every other character stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Path = tuple[str | int, ...]
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_SCALAR = re.compile(r"[^\s,\]}]+")


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
    end = at + 1
    while text[end] != '"':
        end += 2 if text[end] == "\\" else 1
    return end + 1


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
    node: Node | None = parse(text)
    for key in path:
        node = node.parts.get(key) if node else None
    return node


def put(text: str, path: Path, value: Json) -> str:
    """The text with the value at ``path`` replaced, or added as the last of its object; unchanged without a parent."""
    node = find(text, path)
    shown = json.dumps(value, ensure_ascii=False)
    if node is not None:
        return text[: node.start] + shown + text[node.end :]
    parent = find(text, path[:-1])
    if parent is None or parent.kind != "object":
        return text
    return _append(text, parent, f"{json.dumps(path[-1], ensure_ascii=False)}: {shown}")


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


def add(text: str, path: Path, values: list[str]) -> str:
    """The text with these strings at the end of the list at ``path``, written as its last item is."""
    for value in values:
        node = find(text, path)
        if node is None or node.kind != "list":
            return text
        text = _append(text, node, json.dumps(value, ensure_ascii=False))
    return text


def _append(text: str, parent: Node, shown: str) -> str:
    if not parent.parts:
        return text[: parent.start + 1] + shown + text[parent.end - 1 :]
    numbers = list(parent.parts)
    last = parent.parts[numbers[-1]].end
    lead = text[parent.start + 1 : parent.keys[numbers[0]]] if len(numbers) == 1 else _between(text, parent)
    return text[:last] + "," + lead + shown + text[last:]


def _between(text: str, parent: Node) -> str:
    """The blanks after the last comma of a list or object."""
    before, last = list(parent.parts)[-2:]
    return text[text.index(",", parent.parts[before].end) + 1 : parent.keys[last]]


def drop(text: str, path: Path) -> str:
    """The text without the value at ``path`` and its comma; unchanged where there is none."""
    parent, key = find(text, path[:-1]), path[-1]
    if parent is None or key not in parent.parts:
        return text
    order = list(parent.parts)
    at = order.index(key)
    if len(order) == 1:
        return text[: parent.start + 1] + text[parent.end - 1 :]
    if at + 1 < len(order):
        return text[: parent.keys[key]] + text[parent.keys[order[at + 1]] :]
    return text[: parent.parts[order[at - 1]].end] + text[parent.parts[key].end :]


def rename(text: str, path: Path, key: str) -> str:
    """The text with the key of the value at ``path`` written as ``key``; unchanged where there is none."""
    parent = find(text, path[:-1])
    if parent is None or parent.kind != "object" or path[-1] not in parent.keys:
        return text
    start = parent.keys[path[-1]]
    return text[:start] + json.dumps(key, ensure_ascii=False) + text[_string(text, start) :]
