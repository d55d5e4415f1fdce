"""The files that a new checkpoint is made from: opened once, read or copied from, and watched for changes."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from auditor.checkpoint import UNFINISHED, Checkpoint
from auditor.header import MAX_HEADER, parse
from auditor.interrupted import half_done
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.handle import Handle, closed_on_error, naming
from repair.osfs import REAL, Fs, Status

_OPEN = 256  # shards kept open while no one reads them, well under the usual limit of 1024 descriptors


class Sources:
    """The shards of one checkpoint.  A `repair.restore_pieces.Reader`, and the other side of kernel copies.

    Safe to use from several threads.  Every shard is looked at when this is made: `expect_unchanged` says later
    whether one was replaced, cut or written to in the meantime.
    """

    def __init__(self, checkpoint: Checkpoint, fs: Fs = REAL) -> None:
        """Look at every shard; RepairError when one is gone or is not what ``checkpoint`` was read from."""
        self.fs, self.root = fs, checkpoint.root
        self.bytes_read = 0  # of tensors; what is copied in the kernel is not read
        self.served = frozenset(checkpoint.served())
        self._open: dict[str, Handle] = {}  # least recently used first
        self._lent: Counter[str] = Counter()
        self._used: set[str] = set()
        self._lock = threading.Lock()
        self._seen: dict[str, Status] = {}
        self._digests: dict[str, str] = {}
        if self._look(UNFINISHED) is not None:
            raise RepairError(f"{self.root}: is unfinished itself")
        if checkpoint.interrupted:
            raise RepairError(half_done(checkpoint.root, checkpoint.interrupted))
        with closed_on_error(self):
            for name, shard in sorted(checkpoint.shards.items()):
                status = self._look(name)
                if status is None or status.size != shard.size:
                    why = "is gone" if status is None else f"has {status.size} bytes and had {shard.size}"
                    raise _changed(name, why)
                self._seen[name] = status
                raw = self._header(name)
                self._digests[name] = _digest(status, raw)
                if parse(raw, name, shard.size).tensors != shard.header.tensors:
                    raise _changed(name, "has another header")

    @property
    def names(self) -> list[str]:
        """All shards, sorted."""
        return sorted(self._seen)

    @contextmanager
    def lent(self, shard: str) -> Iterator[Handle]:
        """The open shard; it stays open until the block ends, and maybe longer."""
        with self._lock:
            handle = self._open.pop(shard, None) or self._opened(shard)
            self._open[shard] = handle
            self._lent[shard] += 1
            self._used.add(shard)
            if len(self._open) > _OPEN:
                idle = next((name for name in self._open if not self._lent[name]), None)
                if idle is not None:
                    self._open.pop(idle).close()
        try:
            yield handle
        finally:
            with self._lock:
                self._lent[shard] -= 1

    def _opened(self, shard: str) -> Handle:
        handle = Handle.reading(self.fs, self.root / shard)
        if _same(handle.status(), self._seen[shard]):
            return handle
        handle.close()
        raise _changed(shard, "is another file")

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """``length`` bytes of a tensor from byte ``at``; RepairError when they are not all there."""
        _expect_inside(ref, at, length)
        with self.lent(ref.shard) as file:
            raw = file.read(ref.start + at, length)
        with self._lock:
            self.bytes_read += length
        return raw

    def read_into(self, ref: TensorRef, at: int, memory: memoryview) -> None:
        """As `read`, into ``memory`` (uint8, contiguous): getting new pages for many bytes costs as much as reading."""
        _expect_inside(ref, at, len(memory))
        with self.lent(ref.shard) as file:
            file.read_into(ref.start + at, memory)
        with self._lock:
            self.bytes_read += len(memory)

    def expect_unchanged(self, used: bool = False) -> None:
        """RepairError, naming the shard, when one is not the file that it was, by size, time or identity.

        ``used``: look only at those that were opened or read since the last time.
        """
        with self._lock:
            names = sorted(self._used) if used else sorted(self._seen)
            self._used.clear()
        for name in names:
            now = self._look(name)
            if now is None:
                raise _changed(name, "is gone")
            if not _same(now, self._seen[name]):
                raise _changed(name, "has another size or time, or is another file")

    def identity(self) -> dict[str, str]:
        """Each shard's size, time and header, as a digest: what a resumed run must find again."""
        return dict(sorted(self._digests.items()))

    def _look(self, name: str) -> Status | None:
        with naming(name, "cannot be looked at"):
            return self.fs.status(self.root / name, follow=True)

    def _header(self, name: str) -> bytes:
        """Length and text; less when they are not all there or longer than the format allows."""
        size = self._seen[name].size
        with self.lent(name) as file:
            length = min(int.from_bytes(file.read(0, min(8, size)), "little"), MAX_HEADER)
            return file.read(0, min(8 + length, size))

    def close(self) -> None:
        """Close every shard; safe to call twice."""
        with self._lock:
            for handle in self._open.values():
                handle.close()
            self._open.clear()

    def __enter__(self) -> Self:
        """The sources themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every shard."""
        self.close()


def _same(one: Status, other: Status) -> bool:
    return (one.size, one.mtime_ns, one.inode, one.device) == (other.size, other.mtime_ns, other.inode, other.device)


def _digest(status: Status, header: bytes) -> str:
    return hashlib.blake2b(f"{status.size} {status.mtime_ns} ".encode() + header, digest_size=16).hexdigest()


def _expect_inside(ref: TensorRef, at: int, length: int) -> None:
    if at < 0 or length < 0 or at + length > ref.nbytes:
        raise RepairError(f"{ref.shard}: {ref.name}: bytes {at}..{at + length} lie outside the tensor")


def _changed(name: str, why: str) -> RepairError:
    return RepairError(f"{name}: changed while it was read: {why}; nothing that was made from it can be trusted")
