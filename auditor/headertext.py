"""The text of a safetensors header -> entries, by exactly the grammar a header may have.

Works on bytes, not on a JSON tree: hostile input costs no more memory than honest input of the same
length, and every complaint carries an absolute offset.  Grammar: the format's own README and its Rust
reader, which parses strict JSON, ignores unknown keys of an entry, and lets the last of two equal names win.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_ENTRIES = 400_000  # tensors, and again metadata keys, of one header: a bound on memory, above any model
MAX_RANK = 64  # numpy's limit
MAX_NAME = 1 << 16  # bytes of a name
_WORD = (1 << 64) - 1
_MAX_DEPTH = 100  # of a value under an unknown key
_MAX_FOREIGN = 1 << 20  # bytes under unknown keys: no writer uses any
NOTES = 50
METADATA = "__metadata__"


class Entry(NamedTuple):
    """What a header says of one tensor; tuples sort by place.  ``at``: absolute offset of the entry."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int


class HeaderSyntaxError(Exception):
    """Bytes that no header may have, at an absolute offset; ``tensor`` is the entry they are in."""

    def __init__(self, at: int, message: str, tensor: str = "") -> None:
        super().__init__(message)
        self.at, self.message, self.tensor = at, message, tensor


class Note(NamedTuple):
    """Something odd but readable: in which entry, at which absolute offset, what."""

    tensor: str
    at: int
    what: str


@dataclass
class HeaderText:
    """Entries by name, metadata, and what is odd but readable; the first NOTES of each kind are kept."""

    entries: dict[str, Entry] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    metadata_at: int = 0  # offset of the metadata entry, 0 when there is none
    repeated: list[Note] = field(default_factory=list)
    repeats: int = 0
    foreign: list[Note] = field(default_factory=list)  # keys that the format does not have
    foreigners: int = 0
    foreign_bytes: int = 0

    def repeat(self, tensor: str, at: int, what: str) -> None:
        """Note a name that occurs twice."""
        self.repeats += 1
        if self.repeats <= NOTES:
            self.repeated.append(Note(tensor, at, what))

    def foreigner(self, tensor: str, at: int, what: str, nbytes: int) -> None:
        """Note something of ``nbytes`` bytes that other readers ignore."""
        self.foreigners += 1
        self.foreign_bytes += nbytes
        if self.foreigners <= NOTES:
            self.foreign.append(Note(tensor, at, what))


_INT = rb"(?:0|[1-9][0-9]{0,18})"  # at most 19 digits: below 2**64
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"')
_UNTIL = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+')  # as far as a broken string is sound
_SPACE = re.compile(rb"[ \t\r\n]*+")
_WORDS = re.compile(b"true|false|null")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][+-]?[0-9]++)?")
_WHOLE = re.compile(rb"(?:0|[1-9][0-9]{0,19})(?![0-9.eE])")
# The form that writers produce; anything else goes the slow way.
_USUAL = re.compile(
    rb'"([^"\\\x00-\x1f]{1,4096}+)": ?\{"dtype": ?"([A-Z0-9_]{2,14})", ?"shape": ?\[((?:%b(?:, ?%b){0,7}+)?)\], ?'
    rb'"data_offsets": ?\[(%b), ?(%b)\]\}(?:(,) ?|(?=\}))' % (_INT, _INT, _INT, _INT)
)


def read_text(raw: bytes) -> HeaderText:
    """Everything a header says.  ``raw``: the file's first bytes, the 8-byte length and the header, no more.

    Raises HeaderSyntaxError at the first byte that no header may have.
    """
    found = HeaderText()
    at = _space(raw, _expect(raw, 8, b"{", ""))
    more = raw[at : at + 1] != b"}"
    shapes: dict[bytes, tuple[int, ...]] = {}
    scan = _USUAL.match
    while more:
        usual = scan(raw, at)
        if usual is None or usual[1] == b"__metadata__":
            at, more = _slowly(raw, at, found)
            continue
        text, dtype, dims, begin, end, comma = usual.groups()
        shape = shapes.get(dims)
        if shape is None:
            shape = shapes[dims] = tuple(map(int, dims.split(b","))) if dims else ()
        name = _utf8(text, at + 1)
        _add(found, Entry(int(begin), int(end), name, dtype.decode(), shape, at))
        at, more = usual.end(), comma is not None
        if len(shapes) > 4096:
            shapes.clear()
    _padding(raw, at + 1)
    return found


def _padding(raw: bytes, at: int) -> None:
    end = _space(raw, at)
    if end == len(raw):
        return
    if raw.count(b"\0", end) == len(raw) - end:
        raise HeaderSyntaxError(end, f"the header is padded with {len(raw) - end} zero bytes; only spaces may pad it")
    raise HeaderSyntaxError(end, f"{len(raw) - end} bytes follow the header's closing brace")


def _add(found: HeaderText, entry: Entry) -> None:
    if entry.name in found.entries:
        note = f"the name occurs twice in the header, here and at offset {found.entries[entry.name].at}"
        found.repeat(entry.name, entry.at, note)
    if len(found.entries) + found.repeats >= MAX_ENTRIES:
        raise HeaderSyntaxError(entry.at, f"more than {MAX_ENTRIES} tensors in one file; no model has so many")
    found.entries[entry.name] = entry


def _slowly(raw: bytes, at: int, found: HeaderText) -> tuple[int, bool]:
    """One entry in any legal spelling; the position after it and its comma, and whether there was one."""
    start = at = _space(raw, at)
    name, at = _string(raw, at, "")
    at = _space(raw, _expect(raw, at, b":", name))
    if name != METADATA:
        entry, at = _tensor(raw, at, name, start, found)
        _add(found, entry)
        return _comma(raw, at, b"}", name)
    if found.metadata_at:
        raise HeaderSyntaxError(start, f"{METADATA} occurs twice", METADATA)
    found.metadata_at = start
    if raw.startswith(b"null", at):
        found.foreigner(METADATA, at, f"{METADATA} is null instead of an object", 4)
        return _comma(raw, at + 4, b"}", METADATA)
    return _comma(raw, _object(raw, at, METADATA, lambda *key: _metadatum(raw, found, *key)), b"}", METADATA)


def _object(raw: bytes, at: int, tensor: str, value: Callable[[str, int, int], int]) -> int:
    """Walk a JSON object.  ``value(key, offset of the key, offset of its value)`` gives where the value ends."""
    at = _space(raw, _expect(raw, at, b"{", tensor))
    more = raw[at : at + 1] != b"}"
    while more:
        key_at = at
        key, at = _string(raw, at, tensor)
        at = value(key, key_at, _space(raw, _expect(raw, at, b":", tensor)))
        at, more = _comma(raw, at, b"}", tensor)
    return at + 1


def _metadatum(raw: bytes, found: HeaderText, key: str, key_at: int, at: int) -> int:
    if raw[at : at + 1] != b'"':
        raise HeaderSyntaxError(at, f"metadata {key[:80]!r} is not a string", METADATA)
    if key in found.metadata:
        found.repeat(METADATA, key_at, f"metadata key {key[:80]!r} occurs twice")
    if len(found.metadata) + found.repeats >= MAX_ENTRIES:
        raise HeaderSyntaxError(key_at, f"more than {MAX_ENTRIES} metadata keys", METADATA)
    found.metadata[key], at = _string(raw, at, METADATA, longest=len(raw))
    return at


def _tensor(raw: bytes, at: int, name: str, start: int, found: HeaderText) -> tuple[Entry, int]:
    dtype: list[str] = []
    lists: dict[str, tuple[int, ...]] = {}

    def value(key: str, key_at: int, at: int) -> int:
        if key in lists or (key == "dtype" and dtype):
            raise HeaderSyntaxError(key_at, f"key {key!r} occurs twice", name)
        if key == "dtype":
            text, at = _string(raw, at, name)
            dtype.append(text)
        elif key in ("shape", "data_offsets"):
            lists[key], at = _list(raw, at, name)
        else:
            at = _skip(raw, at, name, _MAX_DEPTH, at + _MAX_FOREIGN - found.foreign_bytes)
            found.foreigner(name, key_at, f"key {key[:80]!r} is not part of the format", at - key_at)
        return at

    at = _object(raw, at, name, value)
    offsets = lists.get("data_offsets", ())
    if not dtype or "shape" not in lists or len(offsets) != 2:
        raise HeaderSyntaxError(start, "the entry lacks dtype, shape or a pair of data_offsets", name)
    return Entry(offsets[0], offsets[1], name, dtype[0], lists["shape"], start), at


def _skip(raw: bytes, at: int, tensor: str, depth: int, stop: int) -> int:
    """Where the JSON value at ``at`` ends; no further than ``stop`` is looked."""
    if at > stop:
        raise HeaderSyntaxError(at, f"more than {_MAX_FOREIGN} bytes under keys that the format does not have", tensor)
    if not depth:
        raise HeaderSyntaxError(at, "nested too deeply", tensor)
    char = raw[at : at + 1]
    if char == b"{":
        return _object(raw, at, tensor, lambda _key, _key_at, at: _skip(raw, at, tensor, depth - 1, stop))
    if char == b"[":
        at = _space(raw, at + 1)
        more = raw[at : at + 1] != b"]"
        while more:
            at, more = _comma(raw, _skip(raw, at, tensor, depth - 1, stop), b"]", tensor)
        return at + 1
    if char == b'"':
        return _string(raw, at, tensor, longest=_MAX_FOREIGN)[1]
    if word := _WORDS.match(raw, at):
        return word.end()
    number = _NUMBER.match(raw, at)
    if not number or len(number[0]) > 400 or math.isinf(float(number[0])):
        raise HeaderSyntaxError(at, "not a JSON value, or a number out of range", tensor)
    return number.end()


def _string(raw: bytes, at: int, tensor: str, longest: int = MAX_NAME) -> tuple[str, int]:
    match = _STRING.match(raw, at)
    if not match:
        sound = _UNTIL.match(raw, at)
        if sound:
            raise HeaderSyntaxError(sound.end(), _found(raw, sound.end(), "more of a string"), tensor)
        raise HeaderSyntaxError(at, _found(raw, at, "a string"), tensor)
    if match.end() - at - 2 > longest:
        raise HeaderSyntaxError(at, f"a name of {match.end() - at - 2} bytes; {longest} are the most read", tensor)
    text = _utf8(match[1], at + 1)
    if "\\" in text:
        try:
            text = str(json.loads(f'"{text}"'))
        except ValueError:
            raise HeaderSyntaxError(at, "a string has an invalid escape", tensor) from None
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise HeaderSyntaxError(at, "a string escapes half of a surrogate pair", tensor)
    return text, match.end()


def _utf8(text: bytes, at: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise HeaderSyntaxError(at + error.start, f"byte 0x{text[error.start]:02X} is not UTF-8") from None


def _list(raw: bytes, at: int, tensor: str) -> tuple[tuple[int, ...], int]:
    at = _space(raw, _expect(raw, at, b"[", tensor))
    values: list[int] = []
    more = raw[at : at + 1] != b"]"
    while more:
        number = _WHOLE.match(raw, at)
        if not number or int(number[0]) > _WORD:
            raise HeaderSyntaxError(at, "not an unsigned 64-bit integer", tensor)
        if len(values) == MAX_RANK:
            raise HeaderSyntaxError(at, f"a list of more than {MAX_RANK} numbers; no tensor has so many axes", tensor)
        values.append(int(number[0]))
        at, more = _comma(raw, number.end(), b"]", tensor)
    return tuple(values), at + 1


def _space(raw: bytes, at: int) -> int:
    match = _SPACE.match(raw, at)
    return match.end() if match else at


def _expect(raw: bytes, at: int, char: bytes, tensor: str) -> int:
    at = _space(raw, at)
    if raw[at : at + 1] != char:
        raise HeaderSyntaxError(at, _found(raw, at, f"'{char.decode()}'"), tensor)
    return at + 1


def _comma(raw: bytes, at: int, close: bytes, tensor: str) -> tuple[int, bool]:
    """Position after a comma and True, or the position of the closing bracket and False."""
    at = _space(raw, at)
    char = raw[at : at + 1]
    if char == b",":
        return _space(raw, at + 1), True
    if char == close:
        return at, False
    raise HeaderSyntaxError(at, _found(raw, at, f"',' or '{close.decode()}'"), tensor)


def _found(raw: bytes, at: int, wanted: str) -> str:
    if at >= len(raw):
        return f"the header ends where {wanted} should be"
    return f"byte 0x{raw[at]:02X} where {wanted} should be"
