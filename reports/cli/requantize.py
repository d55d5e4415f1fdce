"""`audit requantize`: an unquantised checkpoint to NVFP4 by a recipe, into a new folder."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quant.errors import UsageError
from reports.cli import choices
from reports.cli.growing import resumable
from reports.cli.guard import ending, silence
from reports.cli.options import ColorOption, ConfigOption, JobsOption, NoProgressOption
from reports.report import Exit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from repair.make.folder import Made
    from repair.make.recipe import Recipe
    from repair.make.requantise import Plan
    from repair.make.sources import Sources
    from reports.layout import Line

MethodName = StrEnum("MethodName", {"AMAX": "amax", "MSE": "mse"})
LayoutName = StrEnum("LayoutName", {"MODELOPT": "modelopt", "COMPRESSED_TENSORS": "compressed-tensors"})
FormatName = StrEnum("FormatName", {"TABLE": "table", "JSON": "json"})

Source = Annotated[str | None, typer.Argument(metavar="SRC", help="The unquantised checkpoint, a folder.")]
Target = Annotated[Path | None, typer.Argument(metavar="DST", help="The new folder; must not exist.")]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", envvar="AUDIT_RECIPE", metavar="NAME|FILE", help="A recipe's name, or a YAML file."),
]
ListRecipes = Annotated[bool, typer.Option("--list-recipes", help="Print the recipes that come with the tool.")]
Method = Annotated[
    MethodName | None, typer.Option(envvar="AUDIT_REQUANTIZE_METHOD", help="Block scales, instead of the recipe's.")
]
Layout = Annotated[LayoutName | None, typer.Option(envvar="AUDIT_LAYOUT", help="Layout, instead of the recipe's.")]
Activations = Annotated[
    str | None,
    typer.Option(
        envvar="AUDIT_ACTIVATIONS", metavar="none|one|from:DIR",
        help="Input scales: none (W4A16), exactly 1, or those of another NVFP4 checkpoint.",
    ),
]  # fmt: skip
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Select these instead of the recipe's modules; repeatable.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave these as they are, too; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be quantised, and why the rest would not.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was cut off.")]
Format = Annotated[FormatName, typer.Option("--format", "-f", help="Form of the report.")]


@dataclasses.dataclass(frozen=True)
class Job:
    """A requantisation as asked for."""

    source: str
    target: Path | None
    recipe: Recipe
    calibrated: str
    dry: bool
    resume: bool
    json: bool
    color: bool | None
    jobs: int | None
    progress: bool

    def run(self) -> int:
        """Plan; and make the new checkpoint unless this is a dry run."""
        from auditor.checkpoint import open_checkpoint
        from repair.make.activations import Taken
        from repair.make.requantise import plan
        from repair.make.sources import Sources

        checkpoint = open_checkpoint(self.source)
        with ExitStack() as stack:
            scales, others = None, []
            if self.calibrated:
                known = open_checkpoint(self.calibrated)
                others.append(stack.enter_context(Sources(known)))
                scales = Taken(known, others[0])
            wanted = plan(checkpoint, self.recipe, scales)
            self._report(wanted, None if self.dry else self._make(wanted, others))
        return Exit.CLEAN

    def _make(self, wanted: Plan, others: Sequence[Sources]) -> Made:
        from repair.make.folder import make
        from repair.make.requantise import job
        from repair.make.sources import Sources
        from reports.cli.progress import watch

        assert self.target is not None
        progress = watch(self.progress)
        try:
            with Sources(wanted.checkpoint) as sources, resumable(self.target):
                made = job(wanted, sources, others)
                return make(made, self.target, self.resume, self.jobs or choices.writers(), progress)
        finally:
            if progress:
                progress.clear()

    def _report(self, wanted: Plan, made: Made | None) -> None:
        from repair.make.requantise_row import kinds, total_of

        rows = wanted.kinds if made is None else kinds(made.rows)
        total = wanted.total if made is None else total_of(made.rows)
        if self.json:
            from reports import output, requantizejson

            output.to_stream(requantizejson.render(self.source, wanted, made, rows, total), sys.stdout)
            return
        from reports import requantizetext as text

        width, limit = _width(), text.SHOWN if sys.stdout.isatty() else None
        if made is None:
            _emit(text.planned(wanted, width, limit), self.color)
        else:
            _emit(text.done(wanted, made, rows, total, width, limit), self.color)


def requantize(
    source: Source = None,
    target: Target = None,
    recipe: RecipeOption = None,
    list_recipes: ListRecipes = False,
    method: Method = None,
    layout: Layout = None,
    activations: Activations = None,
    include: Include = None,
    exclude: Exclude = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    format_: Format = FormatName.TABLE,
    color: ColorOption = None,
    no_progress: NoProgressOption = None,
    jobs: JobsOption = None,
    config: ConfigOption = None,
) -> None:
    """Quantise a checkpoint to NVFP4 by a recipe, in a new folder.

    Exit code 0: done; 2: wrong usage; 3: refused or failed.
    """

    def run() -> int:
        file = choices.file(config, *([source] if source else []))
        colored = choices.colored(color or file.color)
        from repair.make import recipefile

        if list_recipes:
            from reports.requantizetext import recipes

            _emit(recipes(recipefile.shipped(), _width()), colored)
            return Exit.CLEAN
        if source is None or (target is None and not dry_run):
            raise UsageError("name the unquantised checkpoint and the new folder: audit requantize SRC DST --recipe R")
        if recipe is None:
            raise UsageError(f"--recipe is missing: a YAML file, or one of {', '.join(recipefile.shipped())}")
        chosen, calibrated = _overridden(recipefile.load(recipe), method, layout, activations, include, exclude)
        return Job(
            source=source,
            target=target,
            recipe=chosen,
            calibrated=calibrated,
            dry=dry_run,
            resume=resume,
            json=format_ == FormatName.JSON,
            color=colored,
            jobs=jobs or file.jobs,
            progress=not (no_progress or file.no_progress),
        ).run()

    raise ending(run, source)


def _overridden(
    recipe: Recipe,
    method: str | None,
    layout: str | None,
    activations: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
) -> tuple[Recipe, str]:
    """The recipe with what the command line says instead; and the calibrated checkpoint, where one is named."""
    from repair.make import layouts
    from repair.make.recipe import Inputs
    from repair.make.recipe import Method as Rule

    way, calibrated = choices.activations(activations) if activations else (recipe.activations.value, "")
    changed = dataclasses.replace(
        recipe,
        method=Rule(method) if method else recipe.method,
        layout=layouts.Layout(layout) if layout else recipe.layout,
        activations=Inputs(way),
        modules=tuple(include) if include else recipe.modules,
        exclude=(*recipe.exclude, *(exclude or ())),
    )
    return changed, calibrated


def _emit(lines: Iterable[Line], color: bool | None) -> None:
    from reports.cli.printing import print_text

    try:
        print_text(lines, color)
    except BrokenPipeError:
        silence()


def _width() -> int | None:
    from reports.cli.printing import columns

    return columns() if sys.stdout.isatty() else None
