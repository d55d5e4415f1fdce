"""The files of a checkpoint's folder that belong into a copy of it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from auditor.interrupted import FOLDER
from repair.handle import naming
from repair.osfs import Fs

_LEFT_OUT = frozenset({FOLDER, ".git", ".cache", ".gitattributes"})


class Why(enum.Enum):
    """Why a name is passed over."""

    APART = "not part of a checkpoint"
    KIND = "neither a file nor a folder of its own"


class LeftOut(NamedTuple):
    """A name inside the folder that is passed over."""

    path: Path
    why: Why

    def __str__(self) -> str:
        return f"{self.path}: {self.why.value}"


def walk(fs: Fs, root: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """Relative paths of all files, folder by folder; ``left_out`` gets what is passed over, with the reason.

    Links to files are followed, links to folders are not: nothing outside is walked, and no circle is.
    """
    waiting = [Path()]
    while waiting:
        folder = waiting.pop()
        with naming(str(root / folder), "cannot be listed"):
            names = fs.listdir(root / folder)
        for name in names:
            path = folder / name
            if name in _LEFT_OUT and not folder.parts:
                left_out.append(LeftOut(path, Why.APART))
                continue
            own = fs.status(root / path)
            try:
                real = fs.status(root / path, follow=True)
            except OSError:  # a link to itself, or to a place that may not be looked at
                real = None
            if real is not None and real.is_file:
                yield path
            elif real is not None and real.is_folder and own is not None and not own.is_link:
                waiting.append(path)
            else:
                left_out.append(LeftOut(path, Why.KIND))
