"""The words that options take, as the command line needs them."""

from __future__ import annotations

from enum import StrEnum

from auditor.audit import Depth
from auditor.finding import Severity
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


def writers() -> int:
    """Threads that write a new checkpoint, unless it was said: one waits for the disk while another computes."""
    from quant.threads import cores

    return max(2, min(_WRITERS, cores()))
