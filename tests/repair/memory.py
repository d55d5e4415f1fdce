"""A file system in memory that forgets what was not synced, and dies at the k-th call that changes something.

The model is harsher than any real one.  Bytes written to a file are lost, kept or torn at random until the file
is synced, in any order and each write for itself.  A name that was made, moved or taken away is lost or kept,
each for itself, until its folder is synced.  A rename is atomic.  A sync of a file says nothing of its name.
"""

from __future__ import annotations

import errno
import random
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from repair.osfs import Status

ROOT = Path("/m")


class Crash(BaseException):  # not an error of the program: nothing may catch it
    """The power is gone."""


@dataclass
class Inode:
    number: int
    mode: int = stat.S_IFREG | 0o644
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    mtime: int = 1

    def write(self, raw: bytes, offset: int) -> None:
        _write(self.content, raw, offset)
        self.pending.append((offset, raw))

    def sync(self) -> None:
        self.durable, self.pending = bytes(self.content), []


def _write(content: bytearray, raw: bytes, offset: int) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(raw)] = raw


Names = dict[Path, int]


@dataclass
class Change:
    """One change of names: what disappears and what appears."""

    gone: Path | None
    came: Path | None
    inode: int

    def do(self, names: Names) -> None:
        if self.came is not None:
            names[self.came] = self.inode
        if self.gone is not None and names.get(self.gone) == self.inode:
            del names[self.gone]
            for path in [path for path in names if self.came and self.gone in path.parents]:  # a folder's content
                names[self.moved(path)] = names.pop(path)

    def moved(self, path: Path) -> Path:
        """Where a path lies once the change is done."""
        if self.gone is None or self.came is None or self.gone not in path.parents:
            return path
        return self.came / path.relative_to(self.gone)

    def after(self, other: Change) -> Change:
        """The same change, once ``other`` has moved its folder."""
        gone, came = (path and other.moved(path) for path in (self.gone, self.came))
        return Change(gone, came, self.inode)


@dataclass
class Disk:
    """Files and names as the running system sees them, and as the disk holds them."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: Names = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    counter: int = 0

    def new(self, mode: int) -> Inode:
        self.counter += 1
        inode = self.inodes[self.counter] = Inode(self.counter, mode)
        return inode

    def put(self, path: Path, content: bytes, mode: int = stat.S_IFREG | 0o644) -> None:
        """A file that has always been there."""
        inode = self.new(mode)
        inode.content, inode.durable = bytearray(content), content
        self.names[path] = self.durable[path] = inode.number

    def copy(self) -> Disk:
        """The same disk, to be changed apart."""
        inodes = {
            number: replace(inode, content=bytearray(inode.content), pending=list(inode.pending))
            for number, inode in self.inodes.items()
        }
        return Disk(inodes, dict(self.names), dict(self.durable), list(self.pending), self.counter)

    def crashed(self, rng: random.Random, how: str) -> Disk:
        """What is left after the power went.

        ``how``: "drop" keeps nothing unsynced, "keep" all of it, "tear" all but the last write, which is cut,
        "mix" a random part of everything in random order; "kill" only ends the process: the system goes on
        and what was unsynced still is.
        """
        left = self.copy()
        if how == "kill":
            return left
        for inode in left.inodes.values():
            content = bytearray(inode.durable)
            for offset, raw in _survivors(inode.pending, rng, how):
                _write(content, raw, offset)
            inode.content, inode.durable, inode.pending = content, bytes(content), []
        names = dict(left.durable)
        for change in _chosen(left.pending, rng, how):
            change.do(names)
        left.names, left.pending = {p: n for p, n in names.items() if p.parent in names or p == ROOT}, []
        left.durable = dict(left.names)
        return left

    def files(self, hidden: bool = False) -> dict[str, tuple[bytes, int]]:
        """Content and mode of every file; of those outside the hidden folder."""
        found = {}
        for path, number in self.names.items():
            inode = self.inodes[number]
            if stat.S_ISREG(inode.mode) and (hidden or ".audit" not in path.parts):
                found[str(path.relative_to(ROOT))] = (bytes(inode.content), inode.mode)
        return found


def _chosen(changes: list[Change], rng: random.Random, how: str) -> list[Change]:
    if how == "drop":
        return []
    if how == "mix":
        return [change for change in changes if rng.random() < 0.5]
    return changes


def _survivors(writes: list[tuple[int, bytes]], rng: random.Random, how: str) -> list[tuple[int, bytes]]:
    if how == "drop":
        return []
    if how == "keep":
        return writes
    if how == "tear":
        return [*writes[:-1], *(_cut(write, rng) for write in writes[-1:])]
    some = [_cut(write, rng) if rng.random() < 0.5 else write for write in writes if rng.random() < 0.7]
    rng.shuffle(some)
    return some


def _cut(write: tuple[int, bytes], rng: random.Random) -> tuple[int, bytes]:
    """A piece from the beginning, the end, or the middle."""
    offset, raw = write
    start, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    start, end = rng.choice([(0, end), (start, len(raw)), (start, end)])
    return offset + start, raw[start:end]


@dataclass
class MemoryFs:
    """An `Fs` over a Disk.  Dies at the call numbered ``dies`` (from 0), before or after it did its work.

    ``fails``: numbers of calls that raise instead, with the errno given.
    """

    disk: Disk
    dies: int = -1
    fails: dict[int, int] = field(default_factory=dict)
    room: int = 1 << 40  # bytes that are free
    short: bool = False  # pwrite takes at most 7 bytes at a time
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    fds: dict[int, Inode] = field(default_factory=dict)

    def _call(self, name: str) -> None:
        if self.dead:
            raise Crash
        number = len(self.calls)
        self.calls.append(name)
        if number == self.dies:
            self.dead = True
            raise Crash
        if number in self.fails:
            raise OSError(self.fails[number], "made to fail")

    def _at(self, path: Path) -> Inode:
        if self.dead:
            raise Crash
        if path not in self.disk.names:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        return self.disk.inodes[self.disk.names[path]]

    def _open(self, inode: Inode) -> int:
        fd = max(self.fds, default=2) + 1
        self.fds[fd] = inode
        return fd

    def _names(self, gone: Path | None, came: Path | None, inode: int) -> None:
        change = Change(gone, came, inode)
        change.do(self.disk.names)
        self.disk.pending.append(change)

    def open_read(self, path: Path) -> int:
        return self._open(self._at(path))

    def open_write(self, path: Path) -> int:
        return self._open(self._at(path))

    def create(self, path: Path, mode: int = 0o666) -> int:
        self._call(f"create {path.name}")
        if path in self.disk.names:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        inode = self.disk.new(stat.S_IFREG | (mode & 0o644))
        self._names(None, path, inode.number)
        return self._open(inode)

    def open_lock(self, path: Path) -> int:
        return self._open(self._at(path)) if path in self.disk.names else self.create(path)

    def temporary(self) -> int:
        return self._open(Inode(0))

    def close(self, fd: int) -> None:
        del self.fds[fd]

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if self.dead:
            raise Crash
        return bytes(self.fds[fd].content[offset : offset + length])

    def pread_into(self, fd: int, memory: memoryview, offset: int) -> int:
        raw = self.pread(fd, len(memory), offset)
        memory[: len(raw)] = raw
        return len(raw)

    def pwrite(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        inode = self.fds[fd]
        taken = bytes(content[:7] if self.short else content)
        if not self.dead and len(self.calls) == self.dies:
            inode.write(taken, offset)  # the last write may be on the disk, whole or in part
        self._call(f"pwrite {inode.number}")
        inode.write(taken, offset)
        inode.mtime += 1
        return len(taken)

    def fsync(self, fd: int) -> None:
        self._call(f"fsync {self.fds[fd].number}")
        self.fds[fd].sync()

    def fsync_folder(self, path: Path) -> None:
        self._call(f"fsync_folder {path.name}")
        left = []
        for change in self.disk.pending:
            if change.came is not None and change.came.parent == path and change.gone and change.gone.parent != path:
                self.disk.durable[change.came] = change.inode
                left.append(Change(change.gone, None, change.inode))  # the file may keep its old name as well
            elif path in {name.parent for name in (change.gone, change.came) if name}:
                change.do(self.disk.durable)
                left = [other.after(change) for other in left]
            else:
                left.append(change)
        self.disk.pending = left

    def rename(self, source: Path, target: Path) -> None:
        inode = self._at(source)
        if any(target in path.parents for path in self.disk.names):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(target))
        if len(self.calls) == self.dies:
            self._names(source, target, inode.number)
        self._call(f"rename {source.name} {target.name}")
        self._names(source, target, inode.number)

    def unlink(self, path: Path) -> None:
        inode = self._at(path)
        if len(self.calls) == self.dies:
            self._names(path, None, inode.number)
        self._call(f"unlink {path.name}")
        self._names(path, None, inode.number)

    def mkdir(self, path: Path) -> None:
        self._call(f"mkdir {path.name}")
        if path in self.disk.names:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        self._names(None, path, self.disk.new(stat.S_IFDIR | 0o755).number)

    def listdir(self, path: Path) -> list[str]:
        if self.dead:
            raise Crash
        return sorted(found.name for found in self.disk.names if found.parent == path and found != path)

    def status(self, path: Path, follow: bool = False) -> Status | None:
        if self.dead:
            raise Crash
        return self._status(self._at(path)) if path in self.disk.names else None

    def fstatus(self, fd: int) -> Status:
        if self.dead:
            raise Crash
        return self._status(self.fds[fd])

    def _status(self, inode: Inode) -> Status:
        links = sum(number == inode.number for number in self.disk.names.values())
        return Status(inode.mode, len(inode.content), links, 1, inode.number, inode.mtime)

    def keep_mode(self, fd: int, permissions: int, uid: int, gid: int) -> None:
        self.fds[fd].mode = stat.S_IFREG | permissions

    def try_lock(self, fd: int) -> bool:
        return True

    def pid(self) -> int:
        return 1

    def writable(self, path: Path) -> bool:
        return True

    def free(self, path: Path) -> int:
        return self.room

    def resolve(self, path: Path) -> Path:
        return path

    def clone(self, source: int, target: int) -> bool:
        return False

    def copy_range(self, source: int, target: int, length: int, offset: int, at: int) -> int:
        return self.pwrite(target, self.pread(source, length, offset), at)
