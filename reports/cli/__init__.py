"""The `audit` command: one file per command group, the top of the house."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

_COMMON: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
COMMANDS = ("scan", "repair", "requantize", "undo", "cast", "compare", "explain", "demo")  # as help lists them


class Commands(TyperGroup):
    """Imports the file of a command when it is asked for: one command's start does not pay for the others."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run; what goes wrong outside a command, printing its help, say, ends in one line, too."""
        try:
            return super().main(*args, **options)
        except OSError as error:
            from reports.cli.guard import failed

            sys.exit(failed(error).exit_code)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; None, with all of them known for a suggestion, when there is none."""
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                one = typer.Typer(add_completion=False, **_COMMON)
                one.command()(getattr(import_module(f"reports.cli.{name}"), name))
                self.commands[name] = get_command(one)
        return self.commands.get(cmd_name)


app = typer.Typer(
    name="audit",
    help="Tells whether a quantised LLM checkpoint (NVFP4, MXFP4, FP8) is sound, and names every broken tensor.",
    cls=Commands,
    no_args_is_help=True,
    **_COMMON,
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
