"""The `audit` command: one file per command group, the top of the house."""

from __future__ import annotations

from typing import Annotated

import typer

from reports.cli.cast import cast
from reports.cli.compare import compare
from reports.cli.demo import demo
from reports.cli.explain import explain
from reports.cli.repair import repair
from reports.cli.requantize import requantize
from reports.cli.scan import scan
from reports.cli.undo import undo

app = typer.Typer(
    name="audit",
    help="Tells whether a quantised LLM checkpoint (NVFP4, MXFP4, FP8) is sound, and names every broken tensor.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"audit {version('checkpoint-audit')}")
        except PackageNotFoundError:
            typer.echo("audit (not installed)")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Parse what comes before the command."""


app.command()(scan)
app.command()(repair)
app.command()(requantize)
app.command()(undo)
app.command()(cast)
app.command()(compare)
app.command()(explain)
app.command()(demo)
