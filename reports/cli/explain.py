"""`audit explain`: the pages of the rules."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from reports.cli.guard import ending


def explain(
    code: Annotated[str | None, typer.Argument(metavar="[CODE]", help="A rule's code; without it, the list.")] = None,
) -> None:
    """Print a rule's page, or without a code the list of rules."""

    def run() -> int:
        if code is None:
            _list()
        else:
            _page(code)
        return 0

    raise ending(run)


def _list() -> None:
    """Code, severity and title of every rule, the severity coloured on a terminal."""
    from reports import rulebook
    from reports.cli.printing import print_text
    from reports.layout import Span, pad

    rows = rulebook.rows()
    wide = max((len(code) for code, _, _ in rows), default=0)
    head = (Span(f"{pad('CODE', wide)}  {pad('SEVERITY', 8)}  TITLE", "faint"),)
    lines = [(Span(pad(c, wide) + "  ", "strong"), Span(pad(s, 8) + "  ", s), Span(t)) for c, s, t in rows]
    print_text([head, *lines])


def _page(code: str) -> None:
    """Rendered on a terminal, Markdown elsewhere."""
    from reports import output, rulebook
    from reports.cli.printing import colored, columns

    text = rulebook.page(code)
    if not sys.stdout.isatty():
        output.to_stream(text, sys.stdout)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(file=sys.stdout, width=min(100, columns()), no_color=not colored(None)).print(Markdown(text))
