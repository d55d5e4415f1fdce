"""The bytes of a patch: held, made on demand, or lying in a file, so that a plan never holds gigabytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from quant.errors import RepairError
from repair.frame import through
from repair.handle import Handle, naming
from repair.osfs import REAL, Fs

PIECE = 1 << 20  # bytes; what is read, compared, journalled and written at a time


class Lazy(Protocol):
    """Bytes that are fetched piece by piece; every fetch of a piece gives the same bytes."""

    @property
    def length(self) -> int:
        """Number of bytes."""

    def piece(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``."""


Content = bytes | Lazy


def length_of(content: Content) -> int:
    """Number of bytes."""
    return len(content) if isinstance(content, bytes) else content.length


def piece_of(content: Content, start: int, length: int) -> bytes:
    """``length`` bytes from ``start``; RepairError when a lazy content gives another number."""
    if isinstance(content, bytes):
        return content if start == 0 and length == len(content) else content[start : start + length]
    raw = content.piece(start, length)
    if len(raw) != length:
        raise RepairError(f"the plan gives {len(raw)} bytes where it promised {length}")
    return raw


def spans(length: int) -> Iterator[tuple[int, int]]:
    """(start, length) of each piece of a content so long."""
    return ((start, min(PIECE, length - start)) for start in range(0, length, PIECE))


def pieces(content: Content) -> Iterator[bytes]:
    """All of it, a piece at a time."""
    return (piece_of(content, start, length) for start, length in spans(length_of(content)))


def digest(content: Content) -> str:
    """sha256 of all of it, in hexadecimal."""
    sha = hashlib.sha256()
    for piece in pieces(content):
        sha.update(piece)
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Computed:
    """Bytes that ``make(start, length)`` gives, the same on every call.

    Of a patch's new bytes it is called once per piece, in order, before anything is written: it may read the
    ranges that the patch replaces.
    """

    length: int
    make: Callable[[int, int], bytes] = field(compare=False)

    def piece(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``."""
        return self.make(start, length)


class Mapped(NamedTuple):
    """Each byte of ``old`` through a ``table`` of 256: what a change of scale makes of byte codes.

    As a patch's new bytes over that patch's own old bytes it is journalled as the table, not as its bytes.
    """

    old: Content
    table: bytes

    @property
    def length(self) -> int:
        """Number of bytes."""
        return length_of(self.old)

    def piece(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``."""
        return through(self.table, piece_of(self.old, start, length))


class Reader(Protocol):
    """Something with bytes at offsets: a `Handle`, a `Spool`, a `Shared` file."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that lie in a file.  With ``sha256`` they are known to be those of the plan, wherever they are read.

    As a patch's old bytes over the shard itself, the hash is what makes "unchanged since the plan" mean
    something: without it the file would be compared with itself, so `Plan` refuses such a patch.
    """

    reader: Reader = field(compare=False)
    at: int
    length: int
    sha256: str = ""

    def piece(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``."""
        return self.reader.read(self.at + start, length)


class Shared:
    """A file opened when first read, and read by many contents."""

    def __init__(self, path: Path, fs: Fs = REAL) -> None:
        """Nothing is opened yet."""
        self.path, self.name, self.fs = path, path.name, fs
        self._handle: Handle | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; RepairError when they are not there."""
        if self._handle is None:
            self._handle = Handle.reading(self.fs, self.path)
        return self._handle.read(offset, length)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Give the descriptor back; a later read opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


class Spool:
    """A nameless scratch file for the long patches of a plan; gone when closed or when the process ends."""

    def __init__(self, fs: Fs = REAL) -> None:
        """Opens the file."""
        with naming("scratch file", "cannot be made"):
            self._handle = Handle(fs, Path("scratch file"), fs.temporary())
        self.size = 0

    def add(self, content: bytes) -> Stored:
        """Append and hand back its address."""
        at = self.size
        self._handle.write(at, content)
        self.size += len(content)
        return Stored(self, at, len(content))

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``."""
        return self._handle.read(offset, length)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # also of one that could not be made
            self.close()

    def close(self) -> None:
        """Give the space back; safe to call twice."""
        self._handle.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
