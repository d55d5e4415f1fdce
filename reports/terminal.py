"""Lines with colours, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from reports.layout import Line

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


def print_lines(lines: Iterable[Line], stream: TextIO, width: int) -> None:
    """Write styled lines in the colours the terminal has; no text is taken for markup, none is folded here."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=stream,
        width=width,
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
