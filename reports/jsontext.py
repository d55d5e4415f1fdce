"""JSON as it is printed: what is at the top on lines of its own, each entry of a list on one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def pretty(value: Json, levels: int = 2) -> str:
    """``value`` with its outermost ``levels`` of objects and arrays broken into lines, and a line break at the end.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    return _text(value, levels, "\n") + "\n"


def _text(value: Json, levels: int, line: str) -> str:
    within = line + "  "
    if levels and isinstance(value, Mapping) and value:
        entries = (f"{json.dumps(key)}: {_text(one, levels - 1, within)}" for key, one in value.items())
        return f"{{{within}{(',' + within).join(entries)}{line}}}"
    if levels and isinstance(value, list | tuple) and value:
        return f"[{within}{(',' + within).join(_text(one, levels - 1, within) for one in value)}{line}]"
    return json.dumps(value, allow_nan=False)
