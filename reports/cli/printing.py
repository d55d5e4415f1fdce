"""Prints reports: chooses format and colours, and where they go."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
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
            self._to_terminal(reports)
        else:
            from reports import output, render

            output.to_stream(render.content(self.format, reports), sys.stdout)

    def _to_terminal(self, reports: Sequence[Report]) -> None:
        from reports.layout import plain

        folded = sys.stdout.isatty()
        width = max(NARROWEST, shutil.get_terminal_size().columns) if folded else None
        lines = self._lines(reports, width)
        if colored(self.color):
            from reports.terminal import print_lines

            print_lines(lines, sys.stdout, width or 10_000)
        else:
            from reports import output

            output.to_stream("".join(plain(line) + "\n" for line in lines), sys.stdout)

    def _lines(self, reports: Sequence[Report], width: int | None) -> Iterator[Line]:
        from reports import text

        if self.format == "plain":
            return text.names(reports)
        if self.format == "full":
            return text.full(reports, width)
        return text.table(reports, width, text.ROWS_SHOWN if width else None)


def colored(wish: bool | None) -> bool:
    """Whether to colour stdout: the wish, or else a terminal that NO_COLOR and TERM leave in colour."""
    if wish is not None:
        return wish
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
