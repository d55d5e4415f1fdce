"""Where a report goes: a stream, or a file that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from quant.errors import UsageError

_BATCH = 1 << 20  # characters


def to_stream(content: str | bytes, stream: TextIO) -> None:
    """Write text, or bytes to the stream's buffer; what the stream cannot encode is written as an escape."""
    if isinstance(content, str):
        content = content.encode(stream.encoding or "utf-8", "backslashreplace")
    stream.flush()
    stream.buffer.write(content)
    stream.flush()


def all_to_stream(pieces: Iterable[str], stream: TextIO) -> None:
    """As `to_stream`, of text that is made bit by bit."""
    batch: list[str] = []
    held = 0
    for piece in pieces:
        batch.append(piece)
        held += len(piece)
        if held > _BATCH:
            to_stream("".join(batch), stream)
            batch, held = [], 0
    to_stream("".join(batch), stream)


def to_file(content: str | bytes, path: Path) -> None:
    """Replace ``path`` in one step by a file with this content; text is UTF-8.

    Raises UsageError, and leaves the old file as it was, when the file cannot be written.
    """
    raw = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
        _write_through(raw, path)
        return
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.resolve().parent)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path.resolve())
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
        raise


def _write_through(raw: bytes, path: Path) -> None:
    try:
        path.write_bytes(raw)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def _mode(path: Path) -> int:
    """The old file's permissions, or what a new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
