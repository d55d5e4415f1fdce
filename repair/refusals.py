"""Why a repair may be refused, each reason a RepairError of its own, and the files that are never patched in place.

The tree:

    RepairError
    ├── SharedFileError      the bytes belong to others too: links, or a download cache
    ├── ReadOnlyError        the file or folder may not be written
    ├── ChangedError         the file is not what the plan was made for
    ├── BusyError            another repair is at work
    ├── UnfinishedError      an interrupted repair must be settled first
    ├── DamagedJournalError  a journal does not say what was written
    └── ForeignJournalError  a journal tells of other files than these
"""

from __future__ import annotations

from pathlib import Path

from quant.errors import RepairError
from repair.osfs import Fs, Status
from repair.wording import plural

_CACHE_PREFIXES = ("models--", "datasets--", "spaces--")
_CACHE_FOLDERS = {"blobs", "snapshots"}
_ASIDE = "write a repaired copy with --out instead"


class SharedFileError(RepairError):
    """Others would see the change too."""


class ReadOnlyError(RepairError):
    """The file or folder may not be written."""


class ChangedError(RepairError):
    """A file is not what the plan, or the journal, was made for."""


class BusyError(RepairError):
    """Another repair is at work on the checkpoint."""


class UnfinishedError(RepairError):
    """A repair was interrupted and must be settled first."""


class DamagedJournalError(RepairError):
    """A journal whose checksums do not hold: nothing is done with it."""


class ForeignJournalError(RepairError):
    """A journal of another checkpoint."""


def refuse_folder(fs: Fs, root: Path) -> None:
    """Raise unless ``root`` is a folder of one's own that may be written.

    A link on the way to the folder is no harm by itself: only where it leads counts.
    """
    status = fs.status(root, follow=True)
    if status is None or not status.is_folder:
        raise RepairError(f"{root}: not a folder")
    _refuse_cache(fs, fs.resolve(root).name, fs.resolve(root))
    if not status.mode & 0o222 or not fs.writable(root):
        raise ReadOnlyError(f"{fs.resolve(root).name}: the folder is read-only; {_ASIDE}")


def refuse_file(fs: Fs, path: Path) -> Status | None:
    """What the file is, None when nothing is there; raises when it may not be patched in place."""
    status = fs.status(path)
    if status is None:
        return None
    name = path.name
    if status.is_link:
        target = fs.resolve(path)
        if in_cache(fs, target):
            raise SharedFileError(f"{name}: a link into a download cache ({target}): a patch there would reach"
                                  f" every later download; {_ASIDE}")  # fmt: skip
        raise SharedFileError(f"{name}: a symbolic link to {target}; {_ASIDE}")
    if not status.is_file:
        raise RepairError(f"{name}: not a regular file")
    _refuse_cache(fs, name, fs.resolve(path))
    if status.links > 1:
        others = plural(status.links - 1, "other name")
        raise SharedFileError(f"{name}: its bytes have {others} (hard links); {_ASIDE}")
    if not status.mode & 0o222 or not fs.writable(path):
        raise ReadOnlyError(f"{name}: the file is read-only")
    return status


def in_cache(fs: Fs, resolved: Path) -> bool:
    """Whether a path without links lies in a hub cache: models--owner--name/blobs or /snapshots, or what looks so."""
    for folder in (resolved, *resolved.parents):
        if folder.name not in _CACHE_FOLDERS:
            continue
        if folder.parent.name.startswith(_CACHE_PREFIXES):
            return True
        if all(fs.status(folder.parent / name) is not None for name in _CACHE_FOLDERS):
            return True
    return False


def _refuse_cache(fs: Fs, name: str, resolved: Path) -> None:
    if in_cache(fs, resolved):
        raise SharedFileError(f"{name}: lies in a download cache ({resolved}): a patch there would reach every later"
                              f" download; {_ASIDE}")  # fmt: skip
