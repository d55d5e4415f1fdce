"""`audit cast`: MXFP4 into NVFP4, or one layout into another, in a new folder."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quant.errors import UsageError
from reports.cli import choices
from reports.cli.growing import resumable
from reports.cli.guard import ending
from reports.cli.options import ColorOption, ConfigOption, JobsOption, NoProgressOption
from reports.cli.repairoptions import Format, FormatName
from reports.report import Exit

if TYPE_CHECKING:
    from contextlib import ExitStack

    from repair.make.activations import Activations
    from repair.make.casting import Casting
    from repair.make.sources import Sources
    from reports.casttext import Told
    from reports.cli.progress import Progress

_SHOWN = 60  # rows on a terminal


class LayoutName(StrEnum):
    """Whose habits the new checkpoint follows."""

    COMPRESSED_TENSORS = "compressed-tensors"
    MODELOPT = "modelopt"


Source = Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the checkpoint to cast; it is not changed.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="New folder; refused when it is there.")]
LayoutOption = Annotated[LayoutName, typer.Option("--layout", envvar="AUDIT_LAYOUT", help="Layout of the new one.")]
ActivationsOption = Annotated[
    str | None,
    typer.Option(
        "--activations",
        metavar="none|one|from:DIR",
        help="Of MXFP4: no activation scales (W4A16), exactly 1, or another NVFP4 checkpoint's.  [default: none]",
    ),
]


def cast(
    source: Source,
    target: Target,
    layout: LayoutOption = LayoutName.COMPRESSED_TENSORS,
    activations: ActivationsOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was cut off.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the table; write nothing.")] = False,
    format_: Format = FormatName.TABLE,
    jobs: JobsOption = None,
    no_progress: NoProgressOption = None,
    color: ColorOption = None,
    config: ConfigOption = None,
) -> None:
    """Cast MXFP4 to NVFP4, or change the layout, in a new folder.

    New scales, untouched codes, exact wherever that is possible.  NVFP4 and FP8 are brought into the other layout.

    Exit code 0: made (or shown); 2: wrong usage; 3: refused or failed, DST.incomplete says so and --resume goes on.
    """

    def run() -> int:
        from contextlib import ExitStack

        from reports.cli.progress import watch

        file = choices.file(config, source)
        progress = watch(not (no_progress or file.no_progress))
        with ExitStack() as stack:
            asked = _Asked(source, target, layout.value, activations, resume, jobs or file.jobs or choices.writers())
            told = asked.carry_out(stack, dry_run, progress)
        colored = choices.colored(color or file.color)
        _print(told, format_ == FormatName.JSON, colored)
        return Exit.CLEAN

    raise ending(run, source)


class _Asked:
    """A cast as it was asked for."""

    def __init__(
        self, source: Path, target: Path, layout: str, activations: str | None, resume: bool, jobs: int
    ) -> None:
        self.source, self.target, self.layout, self.given = source, target, layout, activations
        self.resume, self.jobs = resume, jobs

    def carry_out(self, stack: ExitStack, dry_run: bool, progress: Progress | None) -> Told:
        """Plan it, and make it unless it is only to be shown."""
        from auditor.checkpoint import open_checkpoint
        from repair.make import casting, folder
        from repair.make.layouts import Layout
        from repair.make.sources import Sources
        from reports.casttext import Told, told_of

        if self.source.is_file():
            raise UsageError(f"{self.source}: not a folder: a checkpoint is cast as a whole")
        checkpoint = open_checkpoint(self.source)
        sources = stack.enter_context(Sources(checkpoint))
        scales, others = self._activations(stack)
        found: Casting = casting.plan(checkpoint, sources, Layout(self.layout), scales, others)
        words = str(self.source), str(self.target), self.layout, found.job.options.get("activations", "")
        sizes = [shard.nbytes for shard in found.job.shards]
        if dry_run:
            return Told(*words, told_of(found.rows()), sum(sizes), len(sizes), sources.bytes_read, done=False)
        try:
            with resumable(self.target):
                made = folder.make(found.job, self.target, self.resume, self.jobs, progress)
        finally:
            if progress:
                progress.clear()
        carried = made.carried
        return Told(*words, told_of(made.rows), made.nbytes, made.shards, sources.bytes_read, True, made.resumed,
                    carried.files, carried.left_out)  # fmt: skip

    def _activations(self, stack: ExitStack) -> tuple[Activations | None, list[Sources]]:
        from auditor.checkpoint import open_checkpoint
        from repair.make.activations import NoScales, Ones, Taken
        from repair.make.sources import Sources

        if self.given is None:
            return None, []
        way, folder = choices.activations(self.given)
        if not folder:
            return NoScales() if way == "none" else Ones(), []
        other = open_checkpoint(folder)
        held = stack.enter_context(Sources(other))
        return Taken(other, held), [held]


def _print(told: Told, as_json: bool, color: bool | None) -> None:
    from reports import casttext, output
    from reports.cli.printing import columns, print_text

    if as_json:
        output.to_stream(casttext.render(told), sys.stdout)
        return
    terminal = sys.stdout.isatty()
    print_text(casttext.lines(told, columns() if terminal else None, _SHOWN if terminal else None), color)
