"""JSON as it is printed: what is at the top on lines of its own, each entry of a list on one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Iterator[Json] | Mapping[str, Json] | None"


def pretty(value: Json, levels: int = 2) -> str:
    """``value`` with its outermost ``levels`` of objects and arrays broken into lines, and a line break at the end.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    return "".join(pieces(value, levels))


def pieces(value: Json, levels: int = 2) -> Iterator[str]:
    """The same bit by bit: of an array given as an iterator no more than one entry is held."""
    yield from _pieces(value, levels, "\n")
    yield "\n"


def _pieces(value: Json, levels: int, line: str) -> Iterator[str]:
    within = line + "  "
    if levels and isinstance(value, Mapping) and value:
        before = "{"
        for key, one in value.items():
            yield f"{before}{within}{json.dumps(key)}: "
            yield from _pieces(one, levels - 1, within)
            before = ","
        yield f"{line}}}"
    elif levels and isinstance(value, list | tuple | Iterator):
        before = "["
        for one in value:
            yield f"{before}{within}"
            yield from _pieces(one, levels - 1, within)
            before = ","
        yield f"{line}]" if before == "," else "[]"
    else:
        yield json.dumps(value, allow_nan=False)
