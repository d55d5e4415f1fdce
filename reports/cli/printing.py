"""Prints reports: chooses format and colours, and where they go."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.errors import RepairError, UsageError
from reports.cli.guard import silence
from reports.layout import Line, plain
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


class Paper:
    """Where the lines of a report go that is made bit by bit: to stdout at once, or to a file once it is whole."""

    def __init__(self, output: Path | None = None, color: bool | None = None) -> None:
        """``output``: the file, None for stdout; ``color`` is of stdout, None as the terminal likes."""
        self._output, self._color = output, color
        self._held: list[str] = []

    @property
    def terminal(self) -> bool:
        """Whether a person looks on."""
        return self._output is None and sys.stdout.isatty()

    @property
    def width(self) -> int | None:
        """Columns to fold to; None for a pipe or a file."""
        return columns() if self.terminal else None

    def lines(self, lines: Iterable[Line]) -> None:
        """Styled lines."""
        if self._output is not None:
            self._held += [plain(line) + "\n" for line in lines]
            return
        try:
            print_text(lines, self._color)
        except BrokenPipeError:
            silence()

    def text(self, pieces: Iterable[str]) -> None:
        """Text as it is."""
        from reports import output

        if self._output is not None:
            self._held += pieces
            return
        try:
            output.all_to_stream(pieces, sys.stdout)
        except BrokenPipeError:
            silence()

    def hand_in(self) -> None:
        """Write the file, if there is one to be; RepairError when it cannot be: what it tells of is done by now."""
        if self._output is None:
            return
        from reports import output

        try:
            output.to_file("".join(self._held), self._output)
        except UsageError as error:
            raise RepairError(f"{error}; all else is done") from None


def expect_text(form: str, output: Path | None) -> None:
    """Raise UsageError when a binary format would go to a terminal."""
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("--format parquet is binary: name a file with -o FILE, or send it into a pipe")


def print_text(lines: Iterable[Line], color: bool | None = None) -> None:
    """Write lines to stdout, in colour where that is wished or the terminal likes it."""
    if colored(color):
        from reports.terminal import print_lines

        print_lines(lines, sys.stdout)
    else:
        from reports import output

        output.to_stream("".join(plain(line) + "\n" for line in lines), sys.stdout)


def columns() -> int:
    """Width of the terminal."""
    return max(NARROWEST, shutil.get_terminal_size().columns)


def colored(wish: bool | None) -> bool:
    """Whether to colour stdout: the wish, or else a terminal that NO_COLOR and TERM leave in colour."""
    if wish is not None:
        return wish
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
