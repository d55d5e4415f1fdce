"""Pieces: new bytes for a tensor, and the bytes a file would hold once they are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from auditor.checkpoint import Checkpoint
from auditor.source import LocalFile
from auditor.tensorref import TensorRef
from quant.errors import CheckpointError

_OPEN = 64  # files kept open at once: stay far from the limit
_KEPT = 1 << 25  # bytes that are read and kept to be read into again, at most
_ALIGNED = 64  # bytes: where an array begins in memory that is used again


class Piece(NamedTuple):
    """New bytes of one tensor: ``at`` is the byte offset inside the tensor."""

    ref: TensorRef
    at: int
    new: bytes


class Reader(Protocol):
    """Gives bytes of tensors."""

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """``length`` bytes of a tensor, beginning ``at`` bytes into it."""


class Files:
    """The shards of a checkpoint, opened for reading when first asked for."""

    def __init__(self, checkpoint: Checkpoint, keep: int = _OPEN) -> None:
        """Nothing is opened yet; no more than ``keep`` files are open at once."""
        self._checkpoint = checkpoint
        self._keep = keep
        self._open: dict[str, LocalFile] = {}

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """``length`` bytes of a tensor from byte ``at``; CheckpointError when they are not all there."""
        self._expect(ref, at, length)
        return self._file(ref.shard).read(ref.start + at, length)

    def _expect(self, ref: TensorRef, at: int, length: int) -> None:
        if at < 0 or length < 0 or at + length > ref.nbytes:
            raise CheckpointError(f"{ref.shard}: {ref.name}: bytes {at}..{at + length} lie outside the tensor")

    def _file(self, shard: str) -> LocalFile:
        file = self._open.get(shard)
        if file is None:
            if len(self._open) >= self._keep:
                self._open.pop(next(iter(self._open))).close()
            file = self._open[shard] = LocalFile(self._checkpoint.shards[shard].path)
        return file

    def close(self) -> None:
        """Close every shard; safe to call twice."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def __enter__(self) -> Self:
        """The files themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every shard."""
        self.close()


class Buffered(Files):
    """Files read into memory that is used again: fresh pages cost as much as the reading.

    One thread works with it.  What `array` gave is overwritten after `again`.
    """

    def __init__(self, checkpoint: Checkpoint, keep: int, rooms: list[NDArray[np.uint8]]) -> None:
        """``rooms``: memory that lies idle, shared by threads: taken with the first reading, put back by `again`."""
        super().__init__(checkpoint, keep)
        self._rooms = rooms
        self._room: NDArray[np.uint8] | None = None
        self._used = 0

    def again(self) -> None:
        """Nothing that was read is needed any more; the memory grows to what was read, at most 32 MB."""
        if self._room is None:
            return
        if self._used > len(self._room) and self._used <= _KEPT:
            self._room = np.empty(self._used, np.uint8)
        self._rooms.append(self._room)
        self._room, self._used = None, 0

    def array(self, ref: TensorRef, at: int, length: int) -> NDArray[np.uint8]:
        """``length`` bytes of a tensor from byte ``at``, uint8, read-only; CheckpointError as `read`."""
        return self.table(ref, at, length, length, 1).reshape(-1)

    def table(self, ref: TensorRef, at: int, pitch: int, length: int, lines: int) -> NDArray[np.uint8]:
        """``lines`` times ``length`` bytes of a tensor, ``pitch`` apart, uint8 [lines, length], read-only."""
        if lines < 1 or pitch < 0:
            raise CheckpointError(f"{ref.shard}: {ref.name}: no lines to read")
        self._expect(ref, at, (lines - 1) * pitch + length)
        file, out = self._file(ref.shard), self._taken(lines * length)
        if out.size > file.size:  # before memory is taken for bytes that are not there
            raise CheckpointError(f"{ref.shard}: {ref.name}: the file ends before the tensor does")
        into, start = out.data, ref.start + at
        for line in range(lines):
            file.read_into(start + line * pitch, into[line * length : (line + 1) * length])
        out.flags.writeable = False
        return out.reshape(lines, length)

    def _taken(self, length: int) -> NDArray[np.uint8]:
        if self._room is None:
            self._room = self._rooms.pop() if self._rooms else np.empty(0, np.uint8)
        start = self._used
        self._used += -(-length // _ALIGNED) * _ALIGNED
        return self._room[start : start + length] if self._used <= len(self._room) else np.empty(length, np.uint8)


class Overlay:
    """Bytes as they will be after the pieces are written; nothing is written."""

    def __init__(self, under: Reader, pieces: Iterable[Piece]) -> None:
        """``pieces``: disjoint, any order."""
        self._under = under
        self._pieces: dict[str, list[Piece]] = {}
        for piece in pieces:
            self._pieces.setdefault(piece.ref.name, []).append(piece)

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """As the reader beneath, with the new bytes in place."""
        raw = self._under.read(ref, at, length)
        hits = [p for p in self._pieces.get(ref.name, ()) if p.at < at + length and at < p.at + len(p.new)]
        if not hits:
            return raw
        out = bytearray(raw)
        for piece in hits:
            first, last = max(at, piece.at), min(at + length, piece.at + len(piece.new))
            out[first - at : last - at] = piece.new[first - piece.at : last - piece.at]
        return bytes(out)


def read_array(reader: Reader, ref: TensorRef, at: int, length: int) -> NDArray[np.uint8]:
    """Bytes of a tensor as uint8 [length], read-only."""
    if isinstance(reader, Buffered):
        return reader.array(ref, at, length)
    return np.frombuffer(reader.read(ref, at, length), np.uint8)
