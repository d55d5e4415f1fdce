"""One file's declaration while it is read, and the careful readers of single values."""

from __future__ import annotations

from dataclasses import dataclass, field

from auditor.declaration import Algorithm, Group, Problem
from auditor.jsonfile import Json, strings, table

MAX_GROUPS = 10_000


@dataclass
class Draft:
    """One file's declaration while it is read."""

    file: str
    key: str  # where the object lies in the file: quantization_config, say
    method: str
    path: tuple[str, ...] = ()  # of the object that holds the values; source: that object
    source: Json = field(default_factory=dict)
    algorithm: Algorithm | None = None  # of every layer that nothing more special names
    groups: list[Group] = field(default_factory=list)
    layers: dict[str, Algorithm] = field(default_factory=dict)  # MIXED_PRECISION's table
    mixed: bool = False
    exclude: list[tuple[str, str]] = field(default_factory=list)  # (pattern, key)
    exclude_keys: tuple[str, ...] = ()  # where this method's loaders look for them
    kv_cache: str = ""
    producer: str = ""
    version: str = ""
    block: tuple[int, int] | None = None
    scale_fmt: str = ""
    expert_dtype: str = ""
    experts_only: bool = False
    problems: list[Problem] = field(default_factory=list)

    def problem(self, key: str, message: str, *, fatal: bool = True) -> None:
        """Note that a key's value cannot be used."""
        where = f"{self.key}.{key}" if self.key and key else self.key or key
        self.problems.append(Problem(self.file, where, message, fatal))


def text(value: object) -> str:
    """``value`` when it is a string, shortened to what a report can show, else nothing."""
    return value.strip()[:200] if isinstance(value, str) else ""


def positive(value: object) -> int | None:
    """``value`` when it is a positive whole number of sane size (or a string of one), else None."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 8:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        return None
    return value


def shown(value: object) -> str:
    """A JSON value for a message: its type, and itself when it is short."""
    kind = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    what = kind.get(type(value), "a number")
    return f"{what} ({value!r:.60})" if isinstance(value, str | int | float | bool) else what


def group_size(draft: Draft, source: Json) -> int | None:
    value = source.get("group_size")
    size = positive(value)
    if value is not None and size is None and value != -1 and value != 0:
        draft.problem("group_size", f"is {shown(value)}, not a positive whole number")
    return size


def patterns(draft: Draft, source: Json, *keys: str) -> None:
    draft.source, draft.exclude_keys = source, keys
    for key in keys:
        value = source.get(key)
        if value is None:
            continue
        if not isinstance(value, list):
            draft.problem(key, f"is {shown(value)}, not a list of module names")
        elif any(not isinstance(item, str) for item in value):
            draft.problem(key, "holds something that is not a string")
        draft.exclude += [(pattern, key) for pattern in strings(value)]


def kv_scheme(value: object) -> str:
    """The KV-cache algorithm of a ``kv_cache_scheme``: an object with num_bits and type, or a name."""
    if isinstance(value, str):
        return "" if value.strip().lower() in ("", "none", "auto", "null") else value.strip().upper()[:60]
    bits, kind = table(value).get("num_bits"), table(value).get("type")
    if bits == 8:
        return "FP8" if kind == "float" else "INT8"
    return {4: "NVFP4"}.get(bits, "") if isinstance(bits, int) else ""


def pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, str):
        value = [positive(part) for part in value.lower().split("x")[:3]]
    if isinstance(value, list) and len(value) == 2:
        rows, columns = positive(value[0]), positive(value[1])
        if rows and columns:
            return rows, columns
    return None
