"""Whether a repair of a folder was interrupted: what the mark at the end of its newest journal says.

The journals are `repair`'s; here is what everybody who reads the files has to know of them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from auditor.source import opened
from quant.errors import CheckpointError

FOLDER = ".audit"
JOURNAL = re.compile(r"(\d{6})\.journal")
COMPLETE = b"COMPLETE"
MARK_BYTES = len(COMPLETE) + 16  # the word and a checksum


def interrupted(root: Path) -> str:
    """The newest journal, as a path inside ``root``, unless its mark says that the repair is complete; else "".

    One that cannot be read counts as not complete: its repair may be half done.
    """
    try:
        names = os.listdir(root / FOLDER)
    except OSError:
        return ""
    newest = max(filter(JOURNAL.fullmatch, names), default="")
    if not newest:
        return ""
    try:
        with opened(root / FOLDER / newest) as file:
            at = max(0, file.size - MARK_BYTES)
            complete = file.read(at, file.size - at).startswith(COMPLETE)
    except CheckpointError:
        complete = False
    return "" if complete else f"{FOLDER}/{newest}"


def half_done(root: Path, journal: str) -> str:
    """What to say of a folder whose newest journal is not complete."""
    import shlex

    return f"{root}: a repair of it was interrupted ({journal}); `audit undo {shlex.quote(str(root))}` settles it"
