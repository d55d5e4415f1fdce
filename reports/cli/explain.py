"""`audit explain`: the pages of the rules."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from reports.cli.guard import ending


def explain(
    code: Annotated[str | None, typer.Argument(metavar="[CODE]", help="A rule's code; without it, the list.")] = None,
) -> None:
    """Print a rule's page, or without a code the list of rules."""

    def run() -> int:
        from reports import output

        if code is None:
            output.to_stream(_list(), sys.stdout)
        else:
            _page(code)
        return 0

    raise ending(run)


def _list() -> str:
    from reports import rulebook

    rows = [("CODE", "SEVERITY", "TITLE"), *rulebook.rows()]
    wide = [max(len(row[at]) for row in rows) for at in range(2)]
    return "".join(f"{code:{wide[0]}}  {severity:{wide[1]}}  {title}\n" for code, severity, title in rows)


def _page(code: str) -> None:
    """Rendered on a terminal, Markdown elsewhere."""
    from reports import output, rulebook
    from reports.cli.printing import colored

    text = rulebook.page(code)
    if not sys.stdout.isatty():
        output.to_stream(text, sys.stdout)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    width = min(100, shutil.get_terminal_size().columns)
    Console(file=sys.stdout, width=width, no_color=not colored(None)).print(Markdown(text))
