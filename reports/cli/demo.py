"""`audit demo`: see what a scan finds and a repair does, without a checkpoint of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reports.cli.guard import ending, silence
from reports.report import Exit


def demo(
    keep: Annotated[
        Path | None,
        typer.Option(envvar="AUDIT_KEEP", metavar="DIR", help="Leave the checkpoint in this folder, empty or new."),
    ] = None,
) -> None:
    """Forge a damaged checkpoint, scan it, mend a copy, scan that.

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
    from reports import demo as maker

    damaged, mended = folder / "damaged", folder / "mended"
    damaged.mkdir()
    maker.forge(damaged)
    try:
        typer.echo("A forged NVFP4 checkpoint: two layers, four experts, two shards.  Planted in it:")
        for planted in maker.DAMAGE:
            typer.echo(f"  - {planted}")
        code, fault = _scan(damaged)
        _mend(damaged, mended)
        left, again = _scan(mended)
        typer.echo(
            f"\nExit code 0, because finding these is the demo's job; `audit scan` would end with {code}, and on the"
            f" mended copy with {left}."
        )
    except BrokenPipeError:
        silence()
        return Exit.CLEAN
    return Exit.UNCHECKED if fault or again else Exit.CLEAN


def _scan(folder: Path) -> tuple[int, bool]:
    """Scan and print; the exit code that a scan would have, and whether a rule failed."""
    from auditor import scan
    from reports.cli.printing import Printer
    from reports.report import Choice

    typer.echo(f"\n$ audit scan {folder}\n")
    report = Choice().report(scan(folder))
    Printer().print([report])
    return int(report.exit_code()), bool(report.audit.errors)


def _mend(damaged: Path, mended: Path) -> None:
    """Repair into a copy, as far as a guess, and print what was done."""
    from auditor.finding import Safety
    from repair.apply import Proof
    from repair.fixes.desk import Options
    from reports.cli.printing import Paper
    from reports.cli.repair import Job

    typer.echo(f"\n$ audit repair {damaged} --risk guess --out {mended} --write\n")
    Job(
        checkpoint=str(damaged),
        depth="scales",
        rules=None,
        options=Options(risk=Safety.GUESS, rewrite=True),
        write=True,
        out=mended,
        plan_file=None,
        json=False,
        paper=Paper(),
        jobs=None,
        progress=None,
        proof=Proof.RANGES,
    ).run()
