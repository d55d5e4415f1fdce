"""The operating system, as far as repairs may touch it: every write of this room goes through an `Fs`.

One narrow door has two uses: a test can stand behind it and pull the plug at any call, and nothing else in
the toolkit needs to be trusted not to write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

_FICLONE = 0x40049409  # linux/fs.h
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_BUFFER = 1 << 20


class Status(NamedTuple):
    """What is known of a file without reading it."""

    mode: int
    size: int
    links: int
    device: int
    inode: int
    mtime_ns: int
    uid: int = 0
    gid: int = 0

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """A folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def permissions(self) -> int:
        """The permission bits alone."""
        return stat.S_IMODE(self.mode)


class Fs(Protocol):
    """The calls that a repair is made of.  All raise OSError as the system does."""

    def open_read(self, path: Path) -> int:
        """Open for reading; follows links."""

    def open_write(self, path: Path) -> int:
        """Open an existing file for reading and writing in place; refuses a link."""

    def create(self, path: Path, mode: int = 0o666) -> int:
        """Make a new file, open for reading and writing; refuses when anything is there."""

    def open_lock(self, path: Path) -> int:
        """Open a file to lock, made when missing; its content does not matter."""

    def temporary(self) -> int:
        """A nameless scratch file outside the checkpoint."""

    def close(self, fd: int) -> None:
        """Give a descriptor back."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes from ``offset``."""

    def pread_into(self, fd: int, memory: memoryview, offset: int) -> int:
        """The same into ``memory``; how many."""

    def pwrite(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        """Write at ``offset``; the number of bytes taken."""

    def fsync(self, fd: int) -> None:
        """Return when the file's bytes are on the disk."""

    def fsync_folder(self, path: Path) -> None:
        """Return when the folder's names are on the disk."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, replacing what had it."""

    def unlink(self, path: Path) -> None:
        """Take a name away."""

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""

    def mkdir(self, path: Path) -> None:
        """Make a folder."""

    def listdir(self, path: Path) -> list[str]:
        """Names in a folder, sorted."""

    def status(self, path: Path, follow: bool = False) -> Status | None:
        """What is there; None when nothing is."""

    def fstatus(self, fd: int) -> Status:
        """What an open file is."""

    def keep_mode(self, fd: int, permissions: int, uid: int, gid: int) -> None:
        """Give a new file another's permissions, and its owner where that is allowed."""

    def try_lock(self, fd: int) -> bool:
        """Take the exclusive lock; False when another process holds it.  Dies with its holder."""

    def pid(self) -> int:
        """This process, as the lock names it."""

    def writable(self, path: Path) -> bool:
        """Whether this process may write there."""

    def free(self, path: Path) -> int:
        """Bytes that this process may still write to the file system of a folder."""

    def resolve(self, path: Path) -> Path:
        """The path with all links followed."""

    def clone(self, source: int, target: int) -> bool:
        """Share all blocks copy-on-write; False where the file system cannot."""

    def copy_range(self, source: int, target: int, length: int, offset: int, at: int) -> int:
        """Copy up to ``length`` bytes from ``offset`` to ``at``; the number copied, 0 at the end."""


def _status(found: os.stat_result) -> Status:
    return Status(
        found.st_mode,
        found.st_size,
        found.st_nlink,
        found.st_dev,
        found.st_ino,
        found.st_mtime_ns,
        found.st_uid,
        found.st_gid,
    )


class RealFs:
    """The machine's own file system."""

    def open_read(self, path: Path) -> int:
        """As `Fs.open_read`; a named pipe does not hang."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def open_write(self, path: Path) -> int:
        """As `Fs.open_write`."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def create(self, path: Path, mode: int = 0o666) -> int:
        """As `Fs.create`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def open_lock(self, path: Path) -> int:
        """As `Fs.open_lock`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def temporary(self) -> int:
        """As `Fs.temporary`; gone when closed."""
        fd, name = tempfile.mkstemp(prefix="audit-spool-")
        os.unlink(name)
        return fd

    def close(self, fd: int) -> None:
        """As `Fs.close`."""
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """As `Fs.pread`."""
        return os.pread(fd, length, offset)

    def pread_into(self, fd: int, memory: memoryview, offset: int) -> int:
        """As `Fs.pread_into`."""
        return os.preadv(fd, [memory], offset)

    def pwrite(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        """As `Fs.pwrite`."""
        return os.pwrite(fd, content, offset)

    def fsync(self, fd: int) -> None:
        """As `Fs.fsync`; on a Mac, past the drive's own cache."""
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is None:
            os.fsync(fd)
        else:
            fcntl.fcntl(fd, full)

    def fsync_folder(self, path: Path) -> None:
        """As `Fs.fsync_folder`."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """As `Fs.rename`."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """As `Fs.unlink`."""
        os.unlink(path)

    def link(self, source: Path, target: Path) -> None:
        """As `Fs.link`."""
        os.link(source, target)

    def mkdir(self, path: Path) -> None:
        """As `Fs.mkdir`."""
        os.mkdir(path)

    def listdir(self, path: Path) -> list[str]:
        """As `Fs.listdir`."""
        return sorted(os.listdir(path))

    def status(self, path: Path, follow: bool = False) -> Status | None:
        """As `Fs.status`."""
        try:
            return _status(os.stat(path, follow_symlinks=follow))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def fstatus(self, fd: int) -> Status:
        """As `Fs.fstatus`."""
        return _status(os.fstat(fd))

    def keep_mode(self, fd: int, permissions: int, uid: int, gid: int) -> None:
        """As `Fs.keep_mode`."""
        now = os.fstat(fd)
        if (now.st_uid, now.st_gid) != (uid, gid):
            with contextlib.suppress(PermissionError):  # only the superuser may give files away
                os.fchown(fd, uid, gid)
        os.fchmod(fd, permissions)

    def try_lock(self, fd: int) -> bool:
        """As `Fs.try_lock`."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def pid(self) -> int:
        """As `Fs.pid`."""
        return os.getpid()

    def writable(self, path: Path) -> bool:
        """As `Fs.writable`."""
        return os.access(path, os.W_OK)

    def free(self, path: Path) -> int:
        """As `Fs.free`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def resolve(self, path: Path) -> Path:
        """As `Fs.resolve`."""
        return Path(os.path.realpath(path))

    def clone(self, source: int, target: int) -> bool:
        """As `Fs.clone`."""
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno in _NO_CLONE:
                return False
            raise
        return True

    def copy_range(self, source: int, target: int, length: int, offset: int, at: int) -> int:
        """As `Fs.copy_range`; in the kernel where it can."""
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(source, target, length, offset, at)
            except OSError as error:
                if error.errno not in _NO_CLONE:
                    raise
        return os.pwrite(target, os.pread(source, min(length, _BUFFER), offset), at)


REAL: Fs = RealFs()
