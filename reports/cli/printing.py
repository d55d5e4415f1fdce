"""Prints reports: chooses format and colours, and where they go."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.layout import Line
from reports.report import Report

NARROWEST = 40  # a terminal that says it is narrower is not believed


@dataclass(frozen=True)
class Printer:
    """How to print: a format, a file or None for stdout, and whether to colour (None: as the terminal likes)."""

    format: str = "table"
    output: Path | None = None
    color: bool | None = None

    def print(self, reports: Sequence[Report]) -> None:
        """Write all reports."""
        if self.output is not None:
            from reports import output, render

            output.to_file(render.content(self.format, reports), self.output)
        elif self.format in {"table", "full", "plain"} and (sys.stdout.isatty() or self.color):
            width = columns() if sys.stdout.isatty() else None
            print_text(self._lines(reports, width), self.color)
        else:
            from reports import output, render

            output.to_stream(render.content(self.format, reports), sys.stdout)

    def _lines(self, reports: Sequence[Report], width: int | None) -> Iterator[Line]:
        from reports import text

        if self.format == "plain":
            return text.names(reports)
        if self.format == "full":
            return text.full(reports, width)
        return text.table(reports, width, text.ROWS_SHOWN if width else None)


def print_text(lines: Iterable[Line], color: bool | None = None) -> None:
    """Write lines to stdout, in colour where that is wished or the terminal likes it."""
    if colored(color):
        from reports.terminal import print_lines

        print_lines(lines, sys.stdout)
    else:
        from reports import output
        from reports.layout import plain

        output.to_stream("".join(plain(line) + "\n" for line in lines), sys.stdout)


def columns() -> int:
    """Width of the terminal."""
    return max(NARROWEST, shutil.get_terminal_size().columns)


def colored(wish: bool | None) -> bool:
    """Whether to colour stdout: the wish, or else a terminal that NO_COLOR and TERM leave in colour."""
    if wish is not None:
        return wish
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
