"""What belongs to a checkpoint that is read: settings in it are not obeyed, no report is written over its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from auditor.checkpoint import CONFIG, INDEX_SUFFIX, SUFFIX
from quant.errors import UsageError

_Identity = tuple[int, int]  # device and inode: the same for every spelling, and every link
_OURS = (SUFFIX, INDEX_SUFFIX)


def expect_free(target: Path, option: str, read: Iterable[str | Path], made: Path | None = None) -> None:
    """Raise UsageError when a report written to ``target`` would replace a file of a checkpoint that is read.

    That is: any file in its folder or below, and any that has another name there (a link); of other folders, and of
    names that are not taken yet, only those of shards and indices.  ``made``: the folder that the command will make.
    """
    real = Path(os.path.realpath(target))
    if any(name.lower().endswith(_OURS) for name in (target.name, real.name)):
        raise UsageError(f"{option} {target}: that is the name of a shard or an index, never of a report")
    if made is not None and Path(os.path.realpath(made)) in (real, *real.parents):
        raise UsageError(f"{option} {target}: lies in {made}, which is to be made")
    found = _identity(real)
    if found is None:
        return
    for folder in _folders(read):
        inside = _identity(folder) in {_identity(parent) for parent in real.parents}
        if inside or found in {_identity(folder / name) for name in _names(folder)}:
            raise UsageError(f"{option} {target}: is a file of {folder}, which is read; choose a new name")


def owner(file: Path, read: Iterable[str | Path]) -> Path | None:
    """The folder that makes a file part of a checkpoint; None when it is no checkpoint's.

    The file's own folder or any above it, as it is named and as its links lead: one of a checkpoint that is read, or
    one that is a checkpoint's by what it holds.
    """
    known = {_identity(folder) for folder in _folders(read)}
    for place in dict.fromkeys((Path(os.path.abspath(file)), Path(os.path.realpath(file)))):
        for folder in place.parents:
            if _identity(folder) in known or _holds(folder, own=folder == place.parent):
                return folder
    return None


def _holds(folder: Path, own: bool) -> bool:
    """Whether a folder holds a shard or an index; of those above the file's ``own`` a whole checkpoint is asked for.

    A shard that somebody left in a temporary or home folder does not make everything below it part of a checkpoint.
    """
    names = _names(folder)
    shards = any(name.endswith(SUFFIX) for name in names)
    return any(name.endswith(INDEX_SUFFIX) for name in names) or (shards and (own or CONFIG in names))


def _folders(read: Iterable[str | Path]) -> Iterator[Path]:
    """The folders of checkpoints, links followed; of a shard or an index the one that it lies in."""
    for path in map(Path, read):
        real = Path(os.path.realpath(path))
        if real.is_dir():
            yield real
        elif real.exists():
            yield from dict.fromkeys((Path(os.path.realpath(path.parent)), real.parent))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _identity(path: Path) -> _Identity | None:
    """What is there, links followed; None when nothing is, or it cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
