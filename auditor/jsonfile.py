"""Configuration files, which are as hostile as any other: bounded before they are parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from auditor.source import opened
from quant.errors import CheckpointError

MAX_JSON = 128 << 20  # bytes; an index of a million tensors is about this long
_MAX_ITEMS = 8_000_000  # commas and quotes: what the parsed tree's memory grows with

Json = dict[str, Any]


class DuplicateKey(ValueError):
    """A JSON object names a key twice."""


def load(path: Path) -> tuple[Json, int]:
    """The JSON object in a file, and the file's size in bytes.

    Raises CheckpointError, naming the file, when it cannot be read, is larger than any honest one, is not
    UTF-8 JSON, nests too deeply, repeats a key or is not an object.
    """
    with opened(path) as file:
        if file.size > MAX_JSON:
            raise CheckpointError(f"{path.name}: {file.size} bytes; no such file is larger than {MAX_JSON}")
        raw = file.read(0, file.size)
    return parse(raw, path.name), len(raw)


def parse(raw: bytes, name: str) -> Json:
    """The JSON object in ``raw``; CheckpointError as `load`."""
    if raw.count(b",") + raw.count(b'"') + raw.count(b"[") + raw.count(b"{") > _MAX_ITEMS:
        raise CheckpointError(f"{name}: over {_MAX_ITEMS} items; no honest file has so many")
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError:
        raise CheckpointError(f"{name}: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name}: offset {error.start}: not UTF-8") from None
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
                raise DuplicateKey(f"key {key[:80]!r} occurs twice in one object")
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
