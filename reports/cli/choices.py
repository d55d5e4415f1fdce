"""The words that options take, as the command line needs them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from auditor.audit import Depth
from auditor.finding import Severity
from quant.errors import UsageError
from reports import settings

_WRITERS = 4  # at most; each holds some 30 MB

DepthName = StrEnum("DepthName", {word.upper(): word for word in settings.DEPTHS})  # type: ignore[misc]
SeverityName = StrEnum("SeverityName", {word.upper(): word for word in settings.SEVERITIES})  # type: ignore[misc]
FailOn = StrEnum("FailOn", {word.upper(): word for word in settings.FAIL_ON})  # type: ignore[misc]
FormatName = StrEnum("FormatName", {word.upper(): word for word in settings.FORMATS})  # type: ignore[misc]
ColorName = StrEnum("ColorName", {word.upper(): word for word in settings.COLORS})  # type: ignore[misc]


def depth(word: str) -> Depth:
    """The depth a word names."""
    return Depth[word.upper()]


def threshold(word: str) -> Severity | None:
    """The severity a word names, None for never."""
    return None if word == "never" else Severity[word.upper()]


def colored(word: str | None) -> bool | None:
    """Whether to colour; None where the terminal decides: ``auto``, or nothing was said."""
    return {"always": True, "never": False}.get(word or "auto")


def activations(given: str) -> tuple[str, str]:
    """What ``--activations`` says: (none, "") or (one, "") or (from, folder); UsageError for anything else."""
    way, _, folder = given.replace("from ", "from:", 1).partition(":")
    if way not in ("none", "one", "from") or bool(folder) != (way == "from"):
        raise UsageError(f"--activations {given!r}: not one of none, one, from:DIR")
    if folder and not Path(folder).is_dir():
        raise UsageError(f"--activations {given!r}: no such folder")
    return way, folder


def writers() -> int:
    """Threads that write a new checkpoint, unless it was said: one waits for the disk while another computes."""
    from quant.threads import cores

    return max(2, min(_WRITERS, cores()))
