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
        if at < 0 or length < 0 or at + length > ref.nbytes:
            raise CheckpointError(f"{ref.shard}: {ref.name}: bytes {at}..{at + length} lie outside the tensor")
        return self._file(ref.shard).read(ref.start + at, length)

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
    return np.frombuffer(reader.read(ref, at, length), np.uint8)
