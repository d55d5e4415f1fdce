"""The files that a new checkpoint is made from: opened once, read or copied from, and watched for changes."""

from __future__ import annotations

import hashlib
import threading
from typing import Self

from auditor.checkpoint import Checkpoint
from auditor.header import MAX_HEADER
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.handle import Handle
from repair.osfs import REAL, Fs, Status

_OPEN = 512  # shards kept open at once, well under the usual limit of 1024 descriptors


class Sources:
    """The shards of one checkpoint.  A `repair.restore_pieces.Reader`, and the other side of kernel copies.

    Safe to use from several threads.  Every shard is looked at when this is made: `unchanged` says later whether one
    was replaced, cut or written to in the meantime.
    """

    def __init__(self, checkpoint: Checkpoint, fs: Fs = REAL) -> None:
        """Look at every shard; RepairError when one is gone or has another size than its header was read with."""
        self.fs, self.root = fs, checkpoint.root
        self._sizes = {name: shard.size for name, shard in checkpoint.shards.items()}
        self._open: dict[str, Handle] = {}
        self._lock = threading.Lock()
        self._seen: dict[str, Status] = {}
        for name, size in self._sizes.items():
            status = fs.status(self.root / name, follow=True)
            if status is None or status.size != size:
                raise _changed(name, "is gone" if status is None else f"has {status.size} bytes and had {size}")
            self._seen[name] = status

    @property
    def names(self) -> list[str]:
        """All shards, sorted."""
        return sorted(self._seen)

    def handle(self, shard: str) -> Handle:
        """The open shard; it stays open."""
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                if len(self._open) >= _OPEN:
                    raise RepairError(f"{shard}: over {_OPEN} shards would be open at once")
                found = self._open[shard] = Handle.reading(self.fs, self.root / shard)
            return found

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """``length`` bytes of a tensor from byte ``at``; RepairError when they are not all there."""
        if at < 0 or length < 0 or at + length > ref.nbytes:
            raise RepairError(f"{ref.shard}: {ref.name}: bytes {at}..{at + length} lie outside the tensor")
        return self.handle(ref.shard).read(ref.start + at, length)

    def expect_unchanged(self) -> None:
        """RepairError, naming the shard, when one is not the file that it was, by size, time or identity."""
        for name, seen in self._seen.items():
            now = self.fs.status(self.root / name, follow=True)
            if now is None:
                raise _changed(name, "is gone")
            if (now.size, now.mtime_ns, now.inode, now.device) != (seen.size, seen.mtime_ns, seen.inode, seen.device):
                raise _changed(name, "has another size or time, or is another file")

    def identity(self) -> dict[str, str]:
        """Each shard's size, time and header, as a digest: what a resumed run must find again."""
        return {name: self._identity(name) for name in sorted(self._seen)}

    def _identity(self, name: str) -> str:
        seen, file = self._seen[name], self.handle(name)
        head = file.read(0, min(8, seen.size))
        length = min(int.from_bytes(head, "little"), MAX_HEADER, max(0, seen.size - 8))
        digest = hashlib.blake2b(f"{seen.size} {seen.mtime_ns} ".encode(), digest_size=16)
        digest.update(file.read(0, 8 + length if seen.size >= 8 else seen.size))
        return digest.hexdigest()

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


def _changed(name: str, why: str) -> RepairError:
    return RepairError(f"{name}: changed while it was read: {why}; nothing that was made from it can be trusted")
