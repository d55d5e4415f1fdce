"""A file that the user names: settings, a baseline, a recipe.  Bounded before it is parsed."""

from __future__ import annotations

from pathlib import Path

from auditor.source import opened
from quant.errors import CheckpointError, UsageError

SMALL = 1 << 16  # bytes of what a person writes: settings, a recipe


def content(path: Path, kind: str, most: int = SMALL) -> bytes:
    """All bytes of a regular file of at most ``most``.

    Raises UsageError, naming ``kind`` and file, when it cannot be read, is larger, or is a pipe, a device or a folder,
    any of which could go on for ever.
    """
    try:
        with opened(path) as file:
            if file.size <= most:
                return file.read(0, file.size)
            size = file.size
    except CheckpointError as error:
        why = str(error).removeprefix(f"{path.name}: ").removeprefix("cannot be opened: ")
        raise UsageError(f"cannot read {kind} {path}: {why}") from None
    raise UsageError(f"{kind} {path}: {size} bytes; none is longer than {most}")
