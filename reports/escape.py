"""Text from files, made safe for what will show it.

Tensor names, shard names and messages come from hostile files.  Each function here takes such text and
returns what one kind of reader may see; `visible` comes first in all of them.
"""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"
LONGEST = 256  # characters of a name that a person is shown

_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")  # letters that are drawn as nothing
_FORMULA = tuple("=+-@\t\r＝＋－＠")  # what a spreadsheet takes for a formula
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#~|!$&"})
_WORKFLOW = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_WORKFLOW_VALUE = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def visible(text: str) -> str:
    """The text with every character that draws nothing, or redraws others, written as \\x1b or \\u202e.

    That is: control, bidirectional, zero-width, private, unassigned and lone surrogate characters, line
    separators, spaces other than U+0020, and marks that sit on their neighbour.  The result is printable,
    has no line break, and is unchanged by a second call.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _plain(c) else _named(c) for c in text)


def _plain(char: str) -> bool:
    if char.isascii():
        return char.isprintable()
    return char.isprintable() and char not in _FILLERS and unicodedata.category(char) not in {"Mn", "Me"}


def _named(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def typed(path: str) -> str:
    """The name of a file or a folder as it is typed in a shell, and taken for no option."""
    from shlex import quote

    return quote(f"./{path}" if path.startswith("-") else path)


def short(text: str, limit: int = LONGEST) -> str:
    """`visible(text)` in at most ``limit`` characters: the middle gives way, so both ends stay readable."""
    text = visible(text)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + ELLIPSIS + text[len(text) - tail :]


def cell(text: str) -> str:
    """Text for a CSV field: a leading character that would start a formula gets an apostrophe before it."""
    shown = visible(text)
    return "'" + shown if shown.lstrip(" ").startswith(_FORMULA) else shown


def markdown(text: str) -> str:
    """Prose for a Markdown paragraph or table cell: no markup, mention, reference or link comes alive."""
    shown = visible(text)
    if "@" in shown or "#" in shown or "://" in shown or "www." in shown.lower():
        return code(text)  # sites link these in rendered text, whatever the escapes were
    return shown.translate(_MARKDOWN)


def code(text: str) -> str:
    """A name as Markdown code, in a table too."""
    shown = visible(text)
    if not shown.strip():
        return "<code>&nbsp;</code>"
    if shown != shown.strip() or "  " in shown or any(c in shown for c in "`|\\"):
        return "<code>" + "".join(c if c.isalnum() else f"&#{ord(c)};" for c in shown) + "</code>"
    return f"`{shown}`"


def workflow(text: str) -> str:
    """The message of a workflow command (`::error::message`)."""
    return visible(text).translate(_WORKFLOW)


def workflow_value(text: str) -> str:
    """A property of a workflow command (`::error file=value::`)."""
    return visible(text).translate(_WORKFLOW_VALUE)
