"""A plan as a JSON file: made on one machine, carried out on another that has the same checkpoint.

Bytes are hexadecimal up to 64 of them, base64 above; a patch longer than a megabyte is written as several, so that
a reader never holds more.  Each entry carries the sha256 of its bytes: the text may have been edited.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from auditor.finding import Safety
from quant.errors import RepairError
from repair.content import Content, Spool, Stored, digest, piece_of, spans
from repair.handle import Handle
from repair.jsonstream import JsonStream
from repair.osfs import REAL, Fs
from repair.patch import MAX_TEXT, FileState, Patch, Plan, Skipped, TextPatch

SCHEMA_VERSION = 1
_HEX = 64  # bytes
_HELD = 1 << 12  # bytes; longer ones wait in a spool
_MOST_ENTRIES = 20_000_000
_LISTS = frozenset({"patches", "texts", "skipped"})
T = TypeVar("T")


def save(plan: Plan, path: Path, fs: Fs = REAL, ties: Sequence[int] = ()) -> None:
    """Write a plan.  RepairError when the file is there already, or when lazy bytes are not what they were.

    ``ties``: see `repair.ties`; patches with one number are read back all together or not at all.
    """
    with Handle.creating(fs, path) as file:
        at = 0
        buffer: list[bytes] = []
        for line in _lines(plan, ties):
            buffer.append(line.encode())
            if sum(map(len, buffer)) > 1 << 20 or len(buffer) > 4096:
                file.write(at, raw := b"".join(buffer))
                at += len(raw)
                buffer.clear()
        file.write(at, b"".join(buffer))
        file.sync()


def _lines(plan: Plan, ties: Sequence[int]) -> Iterator[str]:
    counts = Counter[int]()

    def patches() -> Iterator[dict[str, Any]]:
        for patch, tie in zip_longest(plan.patches, ties):
            for entry in _patch_entries(patch):
                if tie is not None:
                    counts[tie] += 1
                    entry["tie"] = tie
                yield entry

    yield f'{{"schema_version": {SCHEMA_VERSION},\n"files": '
    yield json.dumps({n: _state(s) for n, s in plan.files.items()}, indent=1)
    for key, entries in (
        ("patches", patches()),
        ("texts", map(_text_entry, plan.texts)),
        ("skipped", ({"code": s.code, "tensor": s.tensor, "reason": s.reason} for s in plan.skipped)),
    ):
        yield f',\n"{key}": ['
        for number, entry in enumerate(entries):
            yield (",\n" if number else "\n") + json.dumps(entry)
        yield "\n]"
    if counts:
        yield f',\n"ties": {json.dumps([counts[tie] for tie in range(max(counts) + 1)])}'
    yield "}\n"


def _state(state: FileState) -> dict[str, Any]:
    return {
        "size": state.size,
        "mtime_ns": state.mtime_ns,
        "header_sha256": state.header_sha256,
        "data_start": state.data_start,
    }


def _patch_entries(patch: Patch) -> Iterator[dict[str, Any]]:
    if isinstance(patch.old, Stored) and patch.old.sha256 and digest(patch.old) != patch.old.sha256:
        raise RepairError(f"{patch.file}: {patch.tensor}: offset {patch.offset}: changed since the plan was made")
    for start, length in spans(patch.length):
        old, new = piece_of(patch.old, start, length), piece_of(patch.new, start, length)
        yield {
            "file": patch.file,
            "tensor": patch.tensor,
            "offset": patch.offset + start,
            "length": length,
            "old": _coded(old),
            "new": _coded(new),
            "sha256": hashlib.sha256(old + new).hexdigest(),
            "rule": patch.rule,
            "reason": patch.reason,
            "safety": patch.safety.label,
        }


def _text_entry(text: TextPatch) -> dict[str, Any]:
    old, new = (None if raw is None else _coded(raw) for raw in (text.old, text.new))
    sha = hashlib.sha256((text.old or b"") + (text.new or b"")).hexdigest()
    return {"file": text.file, "old": old, "new": new, "sha256": sha, "rule": text.rule, "reason": text.reason,
            "safety": text.safety.label}  # fmt: skip


def _coded(raw: bytes) -> str:
    return f"hex:{raw.hex()}" if len(raw) <= _HEX else f"base64:{base64.b64encode(raw).decode()}"


def load(path: Path, spool: Spool | None = None, fs: Fs = REAL) -> Plan:
    """Read a plan; RepairError naming the entry when it does not say what it must.

    Bytes longer than 4 kB are moved to ``spool``, by default a scratch file that lives as long as the plan.
    `repair.apply.apply` compares the plan with the files: nothing in it is believed.
    """
    spool = spool or Spool(fs)
    files: dict[str, FileState] = {}
    found: dict[str, list[Any]] = {key: [] for key in _LISTS}
    makers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "patches": lambda entry: _patch(entry, spool),
        "texts": _text,
        "skipped": lambda entry: Skipped(*(_string(entry, key) for key in ("code", "tensor", "reason"))),
    }
    version, ties = None, _Ties()
    with Handle.reading(fs, path) as file:
        for key, value in JsonStream(file, 4 * MAX_TEXT).members(_LISTS):
            where = f"{path.name}: {key}"
            if key == "schema_version":
                version = value
            elif key == "files":
                files = _checked(where, _files, value)
            elif key == "ties":
                ties.counts = _checked(where, _counts, value)
            elif key in _LISTS and value is not None:
                entries = found[key]
                if len(entries) >= _MOST_ENTRIES:
                    raise RepairError(f"{where}: over {_MOST_ENTRIES} entries")
                entries.append(_checked(f"{where}[{len(entries)}]", makers[key], value))
                if key == "patches":
                    ties.add(value)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise RepairError(f"{path.name}: schema_version {str(version)[:40]}; this program knows {SCHEMA_VERSION}")
    ties.expect_whole(path.name)
    try:
        return Plan(tuple(found["patches"]), tuple(found["texts"]), tuple(found["skipped"]), files)
    except RepairError as error:
        raise RepairError(f"{path.name}: {error}") from None


class _Ties:
    """Which entries must be there together, and which are.  Plans may say nothing of it, as those made by hand do."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._seen: dict[int, tuple[int, str]] = {}  # tie -> entries, and the tensor of one

    def add(self, entry: dict[str, Any]) -> None:
        tie = entry.get("tie")
        if isinstance(tie, int):
            self._seen[tie] = self._seen.get(tie, (0, ""))[0] + 1, str(entry["tensor"])

    def expect_whole(self, name: str) -> None:
        for tie, (seen, tensor) in self._seen.items():
            wanted = self.counts[tie] if 0 <= tie < len(self.counts) else 0
            if seen != wanted:
                raise RepairError(f"{name}: {tensor[:200]}: {seen} of the {wanted} entries of one repair are there")


def _counts(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(count, int) for count in value):
        raise ValueError("not a list of numbers")
    return value


def _checked(where: str, make: Callable[[Any], T], value: Any) -> T:
    try:
        return make(value)
    except KeyError as error:
        raise RepairError(f"{where}: {error} is missing") from None
    except (ValueError, TypeError) as error:
        raise RepairError(f"{where}: {error}") from None


def _files(value: Any) -> dict[str, FileState]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    states = {}
    for name, entry in value.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{name[:80]!r} is not an object")
        name.encode()  # a name with half a surrogate pair is no name
        size, mtime, start = (_number(entry, key) for key in ("size", "mtime_ns", "data_start"))
        states[name] = FileState(size, mtime, _string(entry, "header_sha256"), start)
    return states


def _patch(entry: dict[str, Any], spool: Spool) -> Patch:
    old, new = _bytes(entry, "old"), _bytes(entry, "new")
    offset, length = _number(entry, "offset"), _number(entry, "length")
    if len(old) != length or len(new) != length:
        raise ValueError(f"at offset {offset}: {len(old)} old and {len(new)} new bytes, its length is {length}")
    _expect_sum(entry, old + new)
    kept: list[Content] = [raw if len(raw) <= _HELD else spool.add(raw) for raw in (old, new)]
    return Patch(_string(entry, "file"), offset, kept[0], kept[1], *_words(entry))


def _text(entry: dict[str, Any]) -> TextPatch:
    old, new = (None if entry[key] is None else _bytes(entry, key) for key in ("old", "new"))
    _expect_sum(entry, (old or b"") + (new or b""))
    return TextPatch(_string(entry, "file"), old, new, _string(entry, "rule"), *_why(entry))


def _words(entry: dict[str, Any]) -> tuple[str, str, str, Safety]:
    return _string(entry, "tensor"), _string(entry, "rule"), *_why(entry)


def _why(entry: dict[str, Any]) -> tuple[str, Safety]:
    label = _string(entry, "safety")
    safety = {each.label: each for each in Safety}.get(label)
    if safety is None:
        raise ValueError(f"safety {label[:40]!r} is unknown")
    return _string(entry, "reason"), safety


def _expect_sum(entry: dict[str, Any], raw: bytes) -> None:
    if hashlib.sha256(raw).hexdigest() != _string(entry, "sha256"):
        raise ValueError("its bytes are not those of its sha256")


def _bytes(entry: dict[str, Any], key: str) -> bytes:
    kind, _, text = _string(entry, key).partition(":")
    try:
        if kind == "hex":
            return bytes.fromhex(text)
        if kind == "base64":
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{key}: {error}") from None
    raise ValueError(f"{key}: neither hex: nor base64:")


def _string(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")
    value.encode()  # half a surrogate pair cannot be printed or written: ValueError
    return value


def _number(entry: dict[str, Any], key: str) -> int:
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{key} is not a whole number that could be meant")
    return value
