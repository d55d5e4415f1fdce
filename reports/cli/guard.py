"""How a command ends: an exit code and one line, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from quant.errors import CheckpointError, ToolError, UsageError
from reports.escape import visible
from reports.report import Exit

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def say(message: str) -> None:
    """One line on stderr, made safe for a terminal; nothing when nobody reads it."""
    try:
        typer.echo(f"audit: {visible(message)}", err=True)
    except OSError:
        _deafen(sys.stderr)


def ending(command: Callable[[], int], *read: str | Path | None) -> typer.Exit:
    """Run a command; what it returns, or what it raised, becomes the exit to raise.

    UsageError is 2, any other ToolError and any fault is 3, an interrupt 130.  ``read``: the checkpoints, for a hint
    where one cannot be read.
    """
    if sys.stdout is None:  # the caller closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # lives as long as the process
    try:
        return typer.Exit(command())
    except typer.Exit as done:
        return done
    except UsageError as error:
        say(str(error))
        return typer.Exit(Exit.USAGE)
    except CheckpointError as error:
        say(f"{error}{_hint(str(error), read)}")
    except ToolError as error:
        say(str(error))
    except KeyboardInterrupt:
        say("interrupted")
        return typer.Exit(INTERRUPTED)
    except BrokenPipeError:
        silence()
        return typer.Exit(Exit.CLEAN)
    except OSError as error:
        return failed(error)
    except MemoryError:
        say("out of memory")
    except Exception as error:  # the last door before the user: a fault of this tool, said in one line
        say(f"internal error at {_where(error)}: {type(error).__name__}: {error}; please report it")
    return typer.Exit(Exit.UNCHECKED)


def failed(error: OSError) -> typer.Exit:
    """The exit when the system refused, said in one line; what stdout did not take is dropped."""
    say(f"{error.filename or 'cannot write'}: {error.strerror or error}")
    silence()
    return typer.Exit(Exit.UNCHECKED)


def _hint(told: str, read: Iterable[str | Path | None]) -> str:
    from reports.cli.hints import hint

    return next((hint(str(path)) for path in read if path is not None and str(path) in told), "")


def silence() -> None:
    """The reader of stdout has left: what is still buffered for it must not become an error at exit."""
    _deafen(sys.stdout)


def _deafen(stream: object) -> None:
    try:
        descriptor = stream.fileno()  # type: ignore[attr-defined]  # a stream of a test has none
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    except (OSError, ValueError, AttributeError):
        return


def _where(error: BaseException) -> str:
    """File and line where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
