"""An open file that reads and writes whole ranges, and says which file and offset when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from quant.errors import RepairError
from repair.osfs import Fs, Status

_SLICE = 1 << 18  # bytes written at once: for longer ones Linux looks for huge pages, which may cost five times as much


class Closes(Protocol):
    """What holds descriptors."""

    def close(self) -> None:
        """Give them back."""


class Handle:
    """One descriptor of an `Fs`, closed with its block.  OSError becomes RepairError, naming the file."""

    def __init__(self, fs: Fs, path: Path, fd: int) -> None:
        """Take over ``fd``."""
        self.fs, self.path, self.name = fs, path, path.name
        self._fd = fd

    @classmethod
    def reading(cls, fs: Fs, path: Path) -> Handle:
        """Open for reading only."""
        with naming(path.name, "cannot be opened"):
            return cls(fs, path, fs.open_read(path))

    @classmethod
    def writing(cls, fs: Fs, path: Path) -> Handle:
        """Open an existing file for writing in place."""
        with naming(path.name, "cannot be opened for writing"):
            return cls(fs, path, fs.open_write(path))

    @classmethod
    def creating(cls, fs: Fs, path: Path) -> Handle:
        """Make a new file."""
        with naming(path.name, "cannot be made"):
            return cls(fs, path, fs.create(path))

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._fd

    def status(self) -> Status:
        """What the open file is."""
        with naming(self.name, "cannot be looked at"):
            return self.fs.fstatus(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; RepairError when the file ends before."""
        with naming(self.name, f"reading at offset {offset}"):
            raw = self.fs.pread(self._fd, length, offset)
            while len(raw) < length:
                more = self.fs.pread(self._fd, length - len(raw), offset + len(raw))
                if not more:
                    raise RepairError(f"{self.name}: ends at offset {offset + len(raw)} while it was read")
                raw += more
            return raw

    def read_into(self, offset: int, memory: memoryview) -> None:
        """As `read`, into ``memory`` (uint8, contiguous) from its beginning to its end."""
        done = 0
        with naming(self.name, f"reading at offset {offset}"):
            while done < len(memory):
                taken = self.fs.pread_into(self._fd, memory[done:], offset + done)
                if taken <= 0:
                    raise RepairError(f"{self.name}: ends at offset {offset + done} while it was read")
                done += taken

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """All of ``content``, in as many calls as it takes."""
        done, whole = 0, memoryview(content) if len(content) > _SLICE else content
        with naming(self.name, f"writing at offset {offset}"):
            while done < len(whole):
                part = whole[done : done + _SLICE] if done or len(whole) > _SLICE else whole
                taken = self.fs.pwrite(self._fd, part, offset + done)
                if taken <= 0:
                    raise RepairError(f"{self.name}: writing at offset {offset + done}: nothing was taken")
                done += taken

    def sync(self) -> None:
        """Return when the bytes are on the disk."""
        with naming(self.name, "could not be written to the disk"):
            self.fs.fsync(self._fd)

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with naming(self.name, "closing"):
                self.fs.close(fd)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def naming(name: str, doing: str) -> Iterator[None]:
    """Turn OSError into RepairError that names the file and what was tried."""
    try:
        yield
    except OSError as error:
        raise RepairError(f"{name}: {doing}: {error.strerror or error}") from error


@contextmanager
def closed_on_error(file: Closes) -> Iterator[None]:
    """Close a file, or what holds some, when the block raises, and only then."""
    try:
        yield
    except BaseException:
        file.close()
        raise
