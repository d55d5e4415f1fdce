"""Lines with colours, for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TextIO

from reports.layout import Line
from reports.output import to_stream

_UNFOLDED = 10_000  # columns; lines come folded

STYLES = {
    "error": "bold red",
    "warning": "yellow",
    "info": "cyan",
    "fix": "green",
    "name": "none",
    "strong": "bold",
    "faint": "dim",
    "": "none",
}


def print_lines(lines: Iterable[Line], stream: TextIO) -> None:
    """Write styled lines in the colours the terminal has; no text is taken for markup, none is folded here."""
    from rich.console import Console
    from rich.text import Text

    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=_UNFOLDED,
        force_terminal=True,
        no_color=False,
        color_system="standard",
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    for line in lines:
        text = Text()
        for span in line:
            text.append(span.text, STYLES[span.style])
        text.rstrip()
        console.print(text, soft_wrap=True)
    to_stream(drawn.getvalue(), stream)
