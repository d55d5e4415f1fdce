"""Configuration files, which are as hostile as any other: bounded before they are parsed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from auditor.source import opened
from quant.errors import CheckpointError

MAX_INDEX = 100 << 20  # bytes; an index of a million tensors is about this long
MAX_CONFIG = 16 << 20
_MAX_ITEMS = 4_000_000  # quotes, commas and brackets: what the parsed tree's memory grows with

Json = dict[str, Any]
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice."""


def load(path: Path, limit: int = MAX_CONFIG) -> Json:
    """The JSON object in a file.

    Raises CheckpointError, naming the file, when it cannot be read, is larger than ``limit``, is not UTF-8
    JSON, nests too deeply, repeats a key, escapes half of a surrogate pair or is not an object.
    """
    with opened(path) as file:
        if file.size > limit:
            raise CheckpointError(f"{path.name}: {file.size} bytes; no honest file of this kind is over {limit}")
        text = _text(file.read(0, file.size), path.name)
    return parse(text, path.name)


def _text(raw: bytes, name: str) -> str:
    if sum(raw.count(char) for char in (b",", b'"', b"[", b"{")) > _MAX_ITEMS:
        raise CheckpointError(f"{name}: over {_MAX_ITEMS} items; no honest file has so many")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name}: offset {error.start}: byte 0x{raw[error.start]:02X} is not UTF-8") from None


def parse(text: str, name: str) -> Json:
    """The JSON object in ``text``; CheckpointError as `load`."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if _SURROGATE.search(text):  # lone ones cannot be printed, written or be part of a file's name
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise CheckpointError(f"{name}: nested too deeply") from None
    except UnicodeEncodeError:
        raise CheckpointError(f"{name}: a string escapes half of a surrogate pair") from None
    except ValueError as error:
        raise CheckpointError(f"{name}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: holds a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(f"key {key[:80]!r} occurs twice in one object")
            seen.add(key)
    return table


def table(value: object) -> Json:
    """``value`` when it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def strings(value: object) -> list[str]:
    """The strings in ``value`` when it is a JSON list (or one string), else nothing."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
