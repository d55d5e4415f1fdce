"""`audit undo`: take a repair back, or say what could be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quant.errors import CheckpointError
from reports.cli import choices
from reports.cli.guard import ending, say
from reports.cli.options import ColorOption
from reports.cli.repairoptions import Format, FormatName
from reports.jsontext import pretty
from reports.quantity import size
from reports.report import Exit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reports.layout import Line

Folder = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder, shard or index file that was repaired.")]
Entry = Annotated[
    int | None,
    typer.Option("--entry", min=1, metavar="ID", help="The entry to take back.  [default: the newest]"),
]


def undo(
    checkpoint: Folder,
    list_: Annotated[bool, typer.Option("--list", help="List the repairs that are recorded, change nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be put back, change nothing.")] = False,
    entry: Entry = None,
    format_: Format = FormatName.TABLE,
    color: ColorOption = None,
) -> None:
    """Take a repair back, byte for byte.  An undo is recorded like a repair, and can be taken back itself.

    Exit code 0: done, or there is nothing recorded to list; 1: --dry-run has something to put back; 2: wrong usage;
    3: refused or failed, nothing half done.
    """

    def run() -> int:
        root = _folder(checkpoint)
        as_json = format_ == FormatName.JSON
        colored = choices.colored(color)
        if list_:
            return _list(root, as_json, colored)
        if dry_run:
            return _show(root, entry, as_json, colored)
        return _undo(root, entry, as_json)

    raise ending(run, checkpoint)


def _folder(path: Path) -> Path:
    if path.is_file():
        return path.parent
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    return path


def _list(root: Path, as_json: bool, color: bool | None) -> int:
    from repair.apply import history
    from reports import repairtext

    entries = history(root)
    if as_json:
        _emit_json({"checkpoint": str(root), "entries": [repairtext.entry_fields(e) for e in entries]})
    else:
        _emit(repairtext.entries(entries, _width()), color)
    return Exit.CLEAN if all(e.state == "complete" for e in entries) else Exit.UNCHECKED


def _show(root: Path, entry: int | None, as_json: bool, color: bool | None) -> int:
    from repair.apply import undo_plan
    from reports import repairtext

    plan = undo_plan(root, entry)
    if as_json:
        _emit_json({"checkpoint": str(root), "patches": len(plan.patches), "bytes": plan.nbytes, "files": plan.touched})
    else:
        _emit(repairtext.taken_back(plan, _width()), color)
    return Exit.FINDINGS if plan.touched else Exit.CLEAN


def _undo(root: Path, entry: int | None, as_json: bool) -> int:
    from repair.apply import Done, hot, recover
    from repair.apply import undo as take_back
    from reports.cli.repairplan import undoable

    if hot(root) is not None:
        outcome = recover(root)
        if outcome.done is Done.ROLLED_BACK and entry is None:
            say(outcome.message)  # that is what undo was asked for
            return Exit.CLEAN
        say(outcome.message)
    with undoable(root):
        outcome = take_back(root, entry)
    if as_json:
        _emit_json({"checkpoint": str(root), "entry": outcome.entry, "files": list(outcome.files),
                    "bytes": outcome.nbytes, "proof": outcome.proof})  # fmt: skip
    else:
        typer.echo(f"{outcome.message}.  {size(outcome.nbytes)} put back; {outcome.proof}.")
    return Exit.CLEAN


def _emit(lines: Iterable[Line], color: bool | None) -> None:
    from reports.cli.printing import print_text

    print_text(lines, color)


def _emit_json(value: object) -> None:
    from reports import output

    output.to_stream(pretty({"schema_version": 1, **value}), sys.stdout)  # type: ignore[dict-item]


def _width() -> int | None:
    from reports.cli.printing import columns

    return columns() if sys.stdout.isatty() else None
