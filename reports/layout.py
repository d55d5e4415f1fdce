"""Lines of styled text, and text folded to a width.  Knows no finding and no terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

_AT_WORDS = re.compile(r"\S+\s*|\s+")
_AT_DOTS = re.compile(r"[./]?[^./]+|[./]")
_AT_UNDERSCORES = re.compile(r"[^_]*_?")


class Span(NamedTuple):
    """Text with the name of a style: a severity, name, fix, faint, strong, or "" for none."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def cells(text: str) -> int:
    """Columns the text takes on a terminal; an East Asian wide character takes two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int) -> str:
    """The text filled with spaces to a width."""
    return text + " " * (width - cells(text))


def fold(text: str, width: int | None) -> list[str]:
    """Prose in lines of at most ``width`` columns, broken between words where they fit; None folds nothing."""
    return _fold(_AT_WORDS.findall(text), width) if width and cells(text) > width else [text]


def fold_name(name: str, width: int | None) -> list[str]:
    """A dotted name in lines of at most ``width`` columns, broken before a dot, or else after an underscore.

    Nothing is left out: the layer number and the projection stay, whatever the width.
    """
    if not width or cells(name) <= width:
        return [name]
    pieces: list[str] = []
    for part in _AT_DOTS.findall(name):
        pieces += [part] if cells(part) <= width else _AT_UNDERSCORES.findall(part)
    return _fold(pieces, width)


def _fold(pieces: list[str], width: int) -> list[str]:
    lines, line = [], ""
    for piece in _fitting(pieces, width):
        if line and cells(line) + cells(piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _fitting(pieces: list[str], width: int) -> Iterator[str]:
    """The pieces, those wider than a line cut into parts that are not."""
    for piece in pieces:
        part = ""
        for char in piece if cells(piece.rstrip()) > width else ():
            if part and cells(part) + cells(char) > width:
                yield part
                part = ""
            part += char
        yield part or piece


def plain(line: Line) -> str:
    """The line without its styles and without spaces at its end."""
    return "".join(span.text for span in line).rstrip()


def labelled(label: str, texts: list[str], width: int | None, style: str = "", indent: int = 10) -> Iterator[Line]:
    """Texts below each other, a label before the first; folded lines are indented to the same column."""
    for text in texts:
        for part in fold(text, max(20, width - indent) if width else None):
            yield Span(pad(label, indent), "strong"), Span(part, style)
            label = ""
