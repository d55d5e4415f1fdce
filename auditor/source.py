"""Where bytes come from: one small interface, so that a remote file can stand in for a local one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from quant.errors import CheckpointError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ByteSource(Protocol):
    """A file of known size that can be read at any offset."""

    name: str
    size: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset``; CheckpointError when they are not all there."""


class LocalFile:
    """A regular file, read through pread: a file that shrinks gives an error, not a dead process."""

    def __init__(self, path: Path) -> None:
        """Open for reading only.  Raises CheckpointError unless it is a readable regular file."""
        self.name = path.name
        self._fd = -1
        try:
            self._expect_regular(os.stat(path))  # before it is opened: opening a device may already do something
            # O_NONBLOCK: a named pipe put there a moment later must not hang the scan.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self._fd)
            self._expect_regular(status)
        except (OSError, ValueError) as error:
            self.close()
            raise CheckpointError(f"{path.name}: cannot be opened: {_reason(error)}") from None
        except CheckpointError:
            self.close()
            raise
        self.size = status.st_size

    def _expect_regular(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise CheckpointError(f"{self.name}: not a regular file but {kind}")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; raises CheckpointError on an I/O error or when the file ends before it is full."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.name}: reading at offset {offset + done}: {_reason(error)}") from None
            if got == 0:
                raise CheckpointError(f"{self.name}: the file ended at offset {offset + done} while it was read")
            done += got

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, as `read_into`."""
        if offset + length > self.size:  # before memory is taken for bytes that are not there
            raise CheckpointError(f"{self.name}: bytes {offset}..{offset + length} lie past its end ({self.size})")
        try:
            raw = os.pread(self._fd, length, offset)
        except OSError as error:
            raise CheckpointError(f"{self.name}: reading at offset {offset}: {_reason(error)}") from None
        if len(raw) == length:
            return raw
        buffer = bytearray(length)  # a short read: rare, and read again
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def announce(self, offset: int, length: int) -> None:
        """Tell the system that these bytes are wanted soon; nothing where it cannot be told."""
        if hasattr(os, "posix_fadvise"):  # a Mac has not
            with suppress(OSError):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def opened(path: Path) -> Iterator[LocalFile]:
    """A LocalFile that is closed when the block ends."""
    file = LocalFile(path)
    try:
        yield file
    finally:
        file.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
