"""What commands that make a new checkpoint have in common: they say how to go on when one was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.errors import ToolError


@contextmanager
def resumable(target: Path) -> Iterator[None]:
    """An error that left an unfinished folder names it, and what goes on with it, unless it does so already."""
    from repair.make.folder import INCOMPLETE

    try:
        yield
    except ToolError as error:
        work = target.with_name(target.name + INCOMPLETE) if target.name else target
        if str(work) in str(error) or not work.is_dir():
            raise
        raise type(error)(f"{error}; {work} keeps what is done, the same command with --resume goes on") from error
