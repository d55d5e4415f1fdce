"""The words that options take, as the command line needs them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.audit import Depth
from auditor.finding import Severity
from quant.errors import CheckpointError, UsageError
from reports import settings
from reports.cli.guard import say
from reports.report import Terms

if TYPE_CHECKING:
    from auditor.rule import Rule

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


def file(config: Path | None, *read: str | Path) -> settings.Settings:
    """The settings file's answers for a command that reads these checkpoints; says when a file is not obeyed."""
    found = settings.load(config, read=read)
    if found.unheeded:
        say(found.unheeded)
    return found


def terms(picked: settings.Settings, file: settings.Settings, rules: Sequence[Rule] | None) -> Terms:
    """What is left out of a report, and who said so; ``rules``: those that are on, None for all."""
    told = [name for name in ("select", "ignore", "min_severity", "output", "baseline") if getattr(picked, name)]
    filed = [name for name in told if getattr(picked, name) is getattr(file, name)]
    least = str(picked.min_severity or "info")
    optional = {"select", "ignore", *(["min_severity"] if least != "info" else [])} & set(told) - set(filed)
    off: tuple[str, ...] = ()
    if rules is not None:
        from auditor.rule import all_rules

        on = {rule.code for rule in rules}
        off = tuple(rule.code for rule in all_rules() if rule.code not in on)
    return Terms(
        by=(*([file.source] if filed else []), *(["options"] if optional else [])),
        off=off,
        least=least,
        output=str(picked.output) if "output" in filed else "",
        baseline=str(picked.baseline) if "baseline" in filed else "",
    )


def activations(given: str) -> tuple[str, str]:
    """What ``--activations`` says: (none, "") or (one, "") or (from, folder); UsageError for anything else.

    CheckpointError when the folder is not there.
    """
    way, _, folder = given.replace("from ", "from:", 1).partition(":")
    if way not in ("none", "one", "from") or bool(folder) != (way == "from"):
        raise UsageError(f"--activations {given!r}: not one of none, one, from:DIR")
    if folder and not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    return way, folder


def writers() -> int:
    """Threads that write a new checkpoint, unless it was said: one waits for the disk while another computes."""
    from quant.threads import cores

    return max(2, min(_WRITERS, cores()))
