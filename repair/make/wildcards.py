"""An exclusion list as modelopt writes it: whole modules by a wildcard where nothing in them is quantised."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator


def summarised(plain: Iterable[str], quantised: Iterable[str]) -> tuple[str, ...]:
    """Entries that match every module of ``plain`` and none of ``quantised``, sorted.

    For each module the shortest prefix that ends before a dot: ``a.b*``, or ``a.b.*`` where ``a.b`` alone or
    something beside it (``a.b2``) is quantised; itself where there is none.
    """
    taken = sorted(set(quantised))
    found: set[str] = set()
    for name in sorted(set(plain)):
        found.add(next((entry for entry in _prefixes(name) if not _matches(entry, taken)), name))
    return tuple(sorted(found))


def _prefixes(name: str) -> Iterator[str]:
    for at, char in enumerate(name):
        if char == ".":
            yield name[:at] + "*"
            yield name[:at] + ".*"


def _matches(entry: str, taken: list[str]) -> bool:
    """Whether ``prefix*`` matches one of these sorted names; ``prefix.*`` is meant with ``prefix`` itself."""
    prefix = entry[:-1]
    if prefix.endswith(".") and _there(prefix[:-1], taken):
        return True
    at = bisect_left(taken, prefix)
    return at < len(taken) and taken[at].startswith(prefix)


def _there(name: str, taken: list[str]) -> bool:
    at = bisect_left(taken, name)
    return at < len(taken) and taken[at] == name
