"""safetensors header -> TensorRefs, refusing whatever the format forbids.

The parser reads bytes, not a JSON tree: it accepts exactly the grammar a header may have, so hostile input
costs no more memory than honest input of the same length, and every complaint carries an absolute offset.
Grammar and limits: the safetensors format's own README and its Rust reader.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from auditor.tensorref import DTYPE_BITS, TensorRef

MAX_HEADER = 100_000_000  # bytes; larger headers are refused by every reader
MAX_TENSORS = 2_000_000  # entries; a bound on memory, far above any model
_MAX_RANK = 64
_WORD = (1 << 64) - 1


class Flaw(enum.Enum):
    """What kind of rule of the file format a header breaks."""

    HEADER = "header"  # the header cannot be read at all
    LENGTH = "length"  # the file is shorter or longer than its header says
    TENSOR = "tensor"  # one tensor's entry contradicts itself or its neighbours
    DUPLICATE = "duplicate"  # a name occurs twice


@dataclass(frozen=True, slots=True)
class Problem:
    """One violation: which rule, which tensor ("" for the file), at which absolute offset."""

    flaw: Flaw
    tensor: str
    offset: int
    message: str


@dataclass
class Header:
    """What one shard's header says.  ``tensors`` holds only those whose bytes can be read safely."""

    tensors: list[TensorRef] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    data_start: int = 0
    problems: list[Problem] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # tensor -> why its bytes cannot be read


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    at: int  # absolute offset of the entry in the file


class _Syntax(Exception):
    """The header is not of the grammar; carries the position inside the header."""

    def __init__(self, at: int, message: str, tensor: str = "") -> None:
        super().__init__(message)
        self.at, self.message, self.tensor = at, message, tensor


_INT = rb"(?:0|[1-9][0-9]{0,19})"
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"')
_SPACE = re.compile(rb"[ \t\r\n]*+")
_LIST = re.compile(rb"\[[ \t\r\n]*+((?:%b(?:[ \t\r\n]*+,[ \t\r\n]*+%b){0,70}+)?)[ \t\r\n]*+\]" % (_INT, _INT))
# The form every writer produces; anything else goes the slow way.
_USUAL = re.compile(
    rb'"([^"\\\x00-\x1f]++)":\{"dtype":"([A-Z0-9_]{2,14})","shape":\[((?:%b(?:,%b){0,7}+)?)\],'
    rb'"data_offsets":\[(%b),(%b)\]\}(?:,|(?=\}))' % (_INT, _INT, _INT, _INT)
)


def parse(raw: bytes, shard: str, file_size: int) -> Header:
    """The header of a shard whose first bytes are ``raw`` (the 8-byte length included).

    ``raw`` must hold the whole header when the length is legal (see `header_length`); ``file_size`` is the
    size of the file in bytes.  Never raises: violations are `problems`.
    """
    header = Header()
    length, problem = header_length(raw[:8], file_size)
    if problem:
        header.problems.append(problem)
        return header
    header.data_start = 8 + length
    try:
        entries = _entries(raw[8 : 8 + length], header)
    except _Syntax as error:
        header.metadata.clear()
        header.problems.append(Problem(Flaw.HEADER, error.tensor, 8 + error.at, error.message))
        return header
    _place(entries, shard, file_size, header)
    return header


def header_length(first: bytes, file_size: int) -> tuple[int, Problem | None]:
    """Length of the header in bytes, from the file's first eight, and what is wrong with it."""
    if len(first) < 8:
        return 0, Problem(Flaw.HEADER, "", 0, f"file holds {file_size} bytes, too few for the 8-byte header length")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        return 0, Problem(Flaw.HEADER, "", 0, f"header length {length} is over the format's limit of {MAX_HEADER}")
    if 8 + length > file_size:
        return 0, Problem(
            Flaw.LENGTH, "", 0, f"header length {length} reaches past the end of the file ({file_size} bytes)"
        )
    if length < 2:
        return 0, Problem(Flaw.HEADER, "", 0, f"header length {length} is too short for a JSON object")
    return length, None


def _entries(text: bytes, header: Header) -> list[_Entry]:
    """All entries in file order; raises _Syntax at the first byte that no header may have."""
    if text[:1] != b"{":
        raise _Syntax(0, f"header begins with byte 0x{text[0]:02X}, not with '{{'")
    entries: list[_Entry] = []
    at = _space(text, 1)
    if text[at : at + 1] == b"}":
        return _finish(text, at, entries)
    seen: set[str] = set()
    metadata_seen = False
    while True:
        usual = _USUAL.match(text, at)
        if usual and usual[1] != b"__metadata__":
            name, dtype, shape, begin, end = usual.groups()
            entry = _Entry(_utf8(name, at), dtype.decode(), _ints(shape), int(begin), int(end), 8 + at)
            at = usual.end()
            more = text[at - 1 : at] == b","
        else:
            entry_at = at
            key, at = _string(text, at, "")
            at = _expect(text, at, b":", key)
            if key == "__metadata__":
                if metadata_seen:
                    header.problems.append(Problem(Flaw.DUPLICATE, key, 8 + entry_at, "__metadata__ occurs twice"))
                metadata_seen = True
                at = _metadata(text, at, header)
                entry = None
            else:
                entry, at = _tensor(text, at, key, entry_at)
            at, more = _comma(text, at, b"}", key)
        if entry is not None:
            if entry.name in seen:
                problem = Problem(Flaw.DUPLICATE, entry.name, entry.at, "the name occurs twice in the header")
                header.problems.append(problem)
            else:
                seen.add(entry.name)
                entries.append(entry)
                if len(entries) > MAX_TENSORS:
                    raise _Syntax(at, f"more than {MAX_TENSORS} tensors in one header")
        at = _space(text, at)
        if not more:
            return _finish(text, at, entries)


def _finish(text: bytes, at: int, entries: list[_Entry]) -> list[_Entry]:
    if text[at : at + 1] != b"}":
        raise _Syntax(at, _found(text, at, "'}'"))
    rest = text[at + 1 :].strip(b" \t\r\n")
    if rest and rest.strip(b"\0"):
        raise _Syntax(at + 1, f"{len(rest)} bytes after the header's closing brace")
    if rest:
        raise _Syntax(at + 1, f"the header is padded with {len(rest)} zero bytes; only spaces may pad it")
    return entries


def _tensor(text: bytes, at: int, name: str, entry_at: int) -> tuple[_Entry, int]:
    at = _expect(text, at, b"{", name)
    dtype, shape, offsets = "", None, None
    while True:
        key_at = at = _space(text, at)
        key, at = _string(text, at, name)
        at = _space(text, _expect(text, at, b":", name))
        if key == "dtype" and not dtype:
            dtype, at = _string(text, at, name)
        elif key == "shape" and shape is None:
            shape, at = _list(text, at, name)
        elif key == "data_offsets" and offsets is None:
            offsets, at = _list(text, at, name)
        else:
            twice = key in ("dtype", "shape", "data_offsets")
            raise _Syntax(key_at, f"key {key[:80]!r} {'occurs twice' if twice else 'is not part of the format'}", name)
        at, more = _comma(text, at, b"}", name)
        if not more:
            break
    at += 1
    if not dtype or shape is None or offsets is None or len(offsets) != 2:
        raise _Syntax(entry_at, "entry lacks dtype, shape or a pair of data_offsets", name)
    return _Entry(name, dtype, shape, offsets[0], offsets[1], 8 + entry_at), at


def _metadata(text: bytes, at: int, header: Header) -> int:
    at = _space(text, _expect(text, at, b"{", "__metadata__"))
    if text[at : at + 1] == b"}":
        return at + 1
    while True:
        key_at = at = _space(text, at)
        key, at = _string(text, at, "__metadata__")
        at = _space(text, _expect(text, at, b":", "__metadata__"))
        if text[at : at + 1] != b'"':
            raise _Syntax(at, f"metadata {key[:80]!r} is not a string", "__metadata__")
        value, at = _string(text, at, "__metadata__")
        if key in header.metadata:
            message = f"metadata key {key[:80]!r} occurs twice"
            header.problems.append(Problem(Flaw.DUPLICATE, "__metadata__", 8 + key_at, message))
        header.metadata[key] = value
        at, more = _comma(text, at, b"}", "__metadata__")
        if not more:
            return at + 1


def _string(text: bytes, at: int, tensor: str) -> tuple[str, int]:
    match = _STRING.match(text, at)
    if not match:
        raise _Syntax(at, _found(text, at, "a string"), tensor)
    if b"\\" not in match[1]:
        return _utf8(match[1], at), match.end()
    try:
        value = json.loads(match[0])
    except (ValueError, UnicodeDecodeError):
        raise _Syntax(at, "string has an invalid escape", tensor) from None
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _Syntax(at, "string escapes half of a surrogate pair", tensor)
    return str(value), match.end()


def _utf8(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _Syntax(at + 1 + error.start, f"byte 0x{raw[error.start]:02X} is not UTF-8") from None


def _list(text: bytes, at: int, tensor: str) -> tuple[tuple[int, ...], int]:
    match = _LIST.match(text, at)
    if not match:
        raise _Syntax(at, "not a list of unsigned 64-bit integers", tensor)
    values = _ints(match[1])
    if len(values) > _MAX_RANK:
        raise _Syntax(at, f"a list of {len(values)} numbers; no tensor has that many axes", tensor)
    return values, match.end()


def _ints(raw: bytes) -> tuple[int, ...]:
    return tuple(map(int, raw.split(b","))) if raw else ()


def _space(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: bytes, at: int, char: bytes, tensor: str) -> int:
    at = _space(text, at)
    if text[at : at + 1] != char:
        raise _Syntax(at, _found(text, at, f"'{char.decode()}'"), tensor)
    return at + 1


def _comma(text: bytes, at: int, close: bytes, tensor: str) -> tuple[int, bool]:
    """Position after a comma and True, or the position of the closing brace and False."""
    at = _space(text, at)
    char = text[at : at + 1]
    if char == b",":
        return _space(text, at + 1), True
    if char == close:
        return at, False
    raise _Syntax(at, _found(text, at, f"',' or '{close.decode()}'"), tensor)


def _found(text: bytes, at: int, wanted: str) -> str:
    if at >= len(text):
        return f"the header ends where {wanted} should be"
    return f"byte 0x{text[at]:02X} where {wanted} should be"


def _place(entries: list[_Entry], shard: str, file_size: int, header: Header) -> None:
    """Turn entries into TensorRefs; what contradicts itself or overlaps is named and kept out of reach."""
    entries.sort(key=lambda e: (e.begin, e.end))
    held = file_size - header.data_start
    covered = 0
    for entry in entries:
        why = _entry_fault(entry, held)
        if not why and entry.begin < covered and entry.begin != entry.end:
            why = f"bytes {entry.begin}..{entry.end} overlap the tensor before it, which ends at {covered}"
        if why:
            flaw = Flaw.LENGTH if entry.end > held and not _shape_fault(entry) else Flaw.TENSOR
            header.problems.append(Problem(flaw, entry.name, entry.at, why))
            header.unreadable[entry.name] = why
            if entry.begin <= entry.end:
                covered = max(covered, min(entry.end, held))
            continue
        if entry.begin > covered:
            hole = f"{entry.begin - covered} bytes before it (from {header.data_start + covered}) belong to no tensor"
            header.problems.append(Problem(Flaw.TENSOR, entry.name, entry.at, hole))
        covered = max(covered, entry.end)
        start, nbytes = header.data_start + entry.begin, entry.end - entry.begin
        header.tensors.append(TensorRef(entry.name, entry.dtype, entry.shape, shard, start, nbytes))
    if covered < held and not header.unreadable:
        over = held - covered
        message = f"{over} bytes after the last tensor belong to none (file {file_size}, tensors end at {file_size - over})"
        header.problems.append(Problem(Flaw.LENGTH, "", file_size - over, message))


def _entry_fault(entry: _Entry, held: int) -> str:
    if entry.begin > entry.end:
        return f"data_offsets {entry.begin}..{entry.end} run backwards"
    if fault := _shape_fault(entry):
        return fault
    if entry.end > held:
        short = entry.end - held
        return f"its data ends at {entry.end}, {short} bytes past the end of the file: the file is truncated"
    return ""


def _shape_fault(entry: _Entry) -> str:
    bits = DTYPE_BITS.get(entry.dtype)
    if bits is None:
        return f"dtype {entry.dtype[:40]!r} is unknown"
    total = bits
    for length in entry.shape:
        total *= length
        if total > _WORD:
            return f"shape {_short(entry.shape)} of {entry.dtype} overflows 64 bits"
    if total % 8:
        return f"shape {_short(entry.shape)} of {entry.dtype} is not a whole number of bytes"
    if total // 8 != entry.end - entry.begin:
        return (
            f"shape {_short(entry.shape)} of {entry.dtype} needs {total // 8} bytes,"
            f" data_offsets give {entry.end - entry.begin}"
        )
    return ""


def _short(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"[{', '.join(map(str, shape[:8]))}, ... {len(shape)} axes]"
