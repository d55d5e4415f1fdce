"""`audit demo`: see what a scan finds, without a checkpoint of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reports.cli.guard import ending, silence


def demo(
    keep: Annotated[
        Path | None,
        typer.Option(envvar="AUDIT_KEEP", metavar="DIR", help="Leave the checkpoint in this folder, empty or new."),
    ] = None,
) -> None:
    """Forge a small damaged NVFP4 checkpoint, scan it, and show what is found.

    Exit code 0: finding the damage is what this command is for.
    """

    def run() -> int:
        if keep is not None:
            return _show(_fresh(keep))
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="audit-demo-") as folder:
            return _show(Path(folder))

    raise ending(run)


def _fresh(folder: Path) -> Path:
    """The folder, made; raises UsageError when it holds something or cannot be made."""
    from quant.errors import UsageError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty")
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror or error}") from None
    return folder


def _show(folder: Path) -> int:
    from auditor import scan
    from reports import demo as maker
    from reports.cli.printing import Printer
    from reports.report import Choice, Exit

    maker.forge(folder)
    report = Choice().report(scan(folder))
    try:
        typer.echo("A forged NVFP4 checkpoint: two layers, four experts, two shards.  Planted in it:")
        for planted in maker.DAMAGE:
            typer.echo(f"  - {planted}")
        typer.echo(f"\n$ audit scan {folder}\n")
        Printer().print([report])
        code = int(report.exit_code())
        typer.echo(f"\nExit code 0, because finding these is the demo's job; `audit scan` would end with {code}.")
    except BrokenPipeError:
        silence()
    return Exit.UNCHECKED if report.audit.errors else Exit.CLEAN
