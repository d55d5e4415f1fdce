"""`audit compare`: how far the weights of one checkpoint are from another's."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quant.errors import UsageError
from reports.belonging import expect_free
from reports.cli import choices
from reports.cli.guard import ending, silence
from reports.cli.options import (
    ColorOption,
    ConfigOption,
    JobsOption,
    NoProgressOption,
    OutputOption,
    QuietOption,
)
from reports.cli.printing import expect_text
from reports.comparison import FORMATS, SORTS

if TYPE_CHECKING:
    from reports.comparison import Ranking

SortName = StrEnum("SortName", {w.upper(): w for w in SORTS})  # type: ignore[misc]
FormatName = StrEnum("FormatName", {w.upper(): w for w in FORMATS})  # type: ignore[misc]

Reference = Annotated[str, typer.Argument(metavar="A", help="The reference: folder, shard or index file.")]
Candidate = Annotated[str, typer.Argument(metavar="B", help="The checkpoint that is compared with it.")]
MaxMse = Annotated[
    float | None,
    typer.Option(envvar="AUDIT_MAX_MSE", metavar="X", help="Exit code 1 when a tensor's MSE is above."),
]
MinSqnr = Annotated[
    float | None,
    typer.Option(envvar="AUDIT_MIN_SQNR", metavar="DB", help="Exit code 1 when a tensor's SQNR is below."),
]
Include = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Only tensors whose names match; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave out tensors that match; repeatable.")]
PerExpert = Annotated[bool, typer.Option("--per-expert", help="A row for each expert of a fused tensor.")]
Sort = Annotated[SortName, typer.Option(help="Order of the rows, the worst first; file: as stored.")]
Limit = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Rows to list, 0 for all.  [default: 40 on a terminal, else all]"),
]
Worst = Annotated[int, typer.Option(min=0, max=1000, metavar="N", help="Blocks of the largest error to list.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 3 when anything has no counterpart.")]
Format = Annotated[FormatName, typer.Option("--format", "-f", help="Form of the report.")]


def compare(
    a: Reference,
    b: Candidate,
    max_mse: MaxMse = None,
    min_sqnr: MinSqnr = None,
    include: Include = None,
    exclude: Exclude = None,
    per_expert: PerExpert = False,
    sort: Sort = SortName.SQNR,  # type: ignore[attr-defined]
    limit: Limit = None,
    worst: Worst = 5,
    strict: Strict = False,
    format_: Format = FormatName.TABLE,  # type: ignore[attr-defined]
    output: OutputOption = None,
    quiet: QuietOption = None,
    no_progress: NoProgressOption = None,
    color: ColorOption = None,
    jobs: JobsOption = None,
    config: ConfigOption = None,
) -> None:
    """Compare the weights of two checkpoints, tensor by tensor.  Either may be quantised; A is the reference.

    Exit code 0: compared; 1: a tensor is over a limit, or not finite on one side only; 2: wrong usage; 3: something
    could not be read, or nothing could be compared.
    """

    def run() -> int:
        file = choices.file(config, a, b)
        _check(max_mse, min_sqnr)
        form = "plain" if quiet else format_.value
        expect_text(form, output)
        if output is not None:
            expect_free(output, "-o", (a, b))
        from repair.distance import compare_checkpoints
        from reports.cli.progress import watch
        from reports.comparison import Ranking

        progress = watch(not (no_progress or file.no_progress))
        try:
            found = compare_checkpoints(
                a,
                b,
                include=include or (),
                exclude=exclude or (),
                per_expert=per_expert,
                worst=worst,
                jobs=jobs or file.jobs,
                progress=progress,
            )
        finally:
            if progress:
                progress.clear()
        ranking = Ranking(found, max_mse, min_sqnr, sort.value, limit or None, worst)
        colored = choices.colored(color or file.color)
        short = sys.stdout.isatty() and limit is None
        _print(ranking, form, output, colored, short)
        return ranking.exit_code(strict=strict)

    raise ending(run, a, b)


def _check(max_mse: float | None, min_sqnr: float | None) -> None:
    if max_mse is not None and not 0 <= max_mse < math.inf:
        raise UsageError(f"--max-mse {max_mse}: not a number of at least 0")
    if min_sqnr is not None and math.isnan(min_sqnr):
        raise UsageError(f"--min-sqnr {min_sqnr}: not a number")


def _print(ranking: Ranking, name: str, output: Path | None, color: bool | None, short: bool) -> None:
    from reports import output as outputs

    if output is not None:
        from reports.comparefiles import content

        outputs.to_file(content(name, ranking), output)
        return
    try:
        if name in {"table", "plain"}:
            from reports import comparetext as text
            from reports.cli.printing import columns, print_text

            width = columns() if sys.stdout.isatty() else None
            lines = (
                text.table(ranking, width, text.SHOWN if short else None) if name == "table" else text.names(ranking)
            )
            print_text(lines, color)
        else:
            from reports.comparefiles import content

            outputs.to_stream(content(name, ranking), sys.stdout)
    except BrokenPipeError:
        silence()
