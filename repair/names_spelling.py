"""How one tensor's name may be written in another checkpoint, and how alike two names are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, product

from repair.names_tables import PHRASES, TEXT_PREFIXES, synonyms

_MOST = 128


def split(name: str) -> tuple[str, str]:
    """(prefix, tail): the tail begins at the part before the first number, or is the last part."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    start = max(first - 1, 0)
    return ".".join(parts[:start]), ".".join(parts[start:])


def has_text(names: Iterable[str]) -> bool:
    """Whether any name is a layer's under a text model's prefix."""
    return any(prefix in TEXT_PREFIXES and "." in tail for prefix, tail in map(split, names))


def spellings(name: str) -> Iterator[str]:
    """The name, then the ways to write it with synonyms and phrases; a few hundred at most."""
    for base in dict.fromkeys((name, *_rephrased(name))):
        choices = [(part, *synonyms(part)) for part in base.split(".")]
        yield from (".".join(parts) for parts in islice(product(*choices), _MOST))


def _rephrased(name: str) -> Iterator[str]:
    """The name with one run of parts written another way."""
    padded = f".{name}."
    for pair in PHRASES:
        for mine, other in (pair, pair[::-1]):
            longer = len(other) > len(mine) and f".{other}." in padded  # it is the other way of writing already
            if f".{mine}." in padded and not longer:
                yield padded.replace(f".{mine}.", f".{other}.", 1)[1:-1]


def likeness(name: str, other: str) -> tuple[int, int, int]:
    """How well two names with one tail agree: equal parts at the end of the prefix, one model's text, same words."""
    (mine, tail), (theirs, their_tail) = split(name), split(other)
    text = int(mine in TEXT_PREFIXES and theirs in TEXT_PREFIXES)
    same = 0
    for a, b in zip(reversed(mine.split(".")), reversed(theirs.split(".")), strict=False):
        if a != b or not a:
            break
        same += 1
    return text, same, int(tail == their_tail)
