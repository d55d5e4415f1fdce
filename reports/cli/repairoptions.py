"""The options of `audit repair`: flag, environment variable, help, and what they come to."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from auditor.finding import Safety
from quant.errors import UsageError

if TYPE_CHECKING:
    from auditor.rule import Rule
    from repair.fixes.desk import Options

RiskName = StrEnum("RiskName", {"EXACT": "exact", "BOUNDED": "bounded", "GUESS": "guess"})
MethodName = StrEnum("MethodName", {"AUTO": "auto", "AMAX": "amax", "MSE": "mse"})
VerifyName = StrEnum("VerifyName", {"RANGES": "ranges", "FULL": "full"})
FormatName = StrEnum("FormatName", {"TABLE": "table", "JSON": "json"})

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder, shard or index file.")]
Write = Annotated[bool, typer.Option("--write", help="Carry the plan out: in place, journalled, verified.")]
Risk = Annotated[
    RiskName,
    typer.Option(envvar="AUDIT_RISK", help="exact: no sound weight moves; bounded: by a stated error; guess: any."),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy", envvar="AUDIT_POLICY", metavar="POLICY",
        help="Unusable activation scales become: peer-max, min-positive or floor=VALUE.",
    ),
]  # fmt: skip
Select = Annotated[
    list[str] | None,
    typer.Option(envvar="AUDIT_SELECT", metavar="CODES", help="Repair only findings whose codes start so (A,B,...)."),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(envvar="AUDIT_IGNORE", metavar="CODES", help="Leave findings alone; the longest prefix wins."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(envvar="AUDIT_INCLUDE", metavar="CODES", help="Also repairs made only when asked for by code."),
]
Out = Annotated[
    Path | None,
    typer.Option(envvar="AUDIT_OUT", metavar="DIR", help="Write a repaired copy there, leave the original alone."),
]
Link = Annotated[
    bool,
    typer.Option(
        "--link",
        envvar="AUDIT_LINK",
        help="With --out: hard-link what does not change.  In-place repairs refuse such files from then on.",
    ),
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", envvar="AUDIT_PLAN", metavar="FILE", help="Save the plan as JSON.")
]
Apply = Annotated[
    Path | None,
    typer.Option("--apply", envvar="AUDIT_APPLY", metavar="FILE", help="Take this plan instead of making one."),
]
Source = Annotated[
    Path | None,
    typer.Option(envvar="AUDIT_SOURCE", metavar="DIR", help="The unquantised checkpoint: restores what was lost."),
]
Method = Annotated[
    MethodName,
    typer.Option(envvar="AUDIT_METHOD", help="How restored blocks get their scales; auto: as the exporter did."),
]
Verify = Annotated[
    VerifyName,
    typer.Option(envvar="AUDIT_VERIFY", help="Read back what was written; full: hash every other byte, too."),
]
Format = Annotated[FormatName, typer.Option("--format", "-f", help="Form of the report.")]


def words(given: list[str] | None) -> tuple[str, ...]:
    """The codes of a repeated option, each of which may hold several between commas."""
    return tuple(code.strip() for word in given or () for code in word.split(",") if code.strip())


def rules(selected: tuple[str, ...], ignored: tuple[str, ...]) -> tuple[Rule, ...] | None:
    """The rules that are on, None for all of them."""
    if not selected and not ignored:
        return None
    from auditor.rule import all_rules
    from auditor.select import select

    return select(all_rules(), selected, ignored)


def limits(risk: str, policy: str, include: tuple[str, ...], *, rewrite: bool) -> Options:
    """How far repairs may go; UsageError for a policy or a code that is none."""
    from quant.activation import Policy
    from repair.fixes.catalogue import ENTRIES
    from repair.fixes.desk import Options

    unknown = [code for code in include if code not in ENTRIES]
    if unknown:
        known = ", ".join(sorted(code for code, entry in ENTRIES.items() if entry.asked))
        raise UsageError(f"--include {unknown[0]}: no repair waits to be asked for by that code; these do: {known}")
    name, _, value = policy.partition("=")
    floor: float | None = None
    if name not in {p.value for p in Policy} or bool(value) != (name == Policy.FLOOR.value):
        raise UsageError(f"--policy {policy!r}: not one of peer-max, min-positive, floor=VALUE")
    if value:
        try:
            floor = float(value)
        except ValueError:
            floor = math.nan
        if not 2.0**-126 <= floor < 2.0**127:
            raise UsageError(f"--policy {policy!r}: the floor must be a positive float32 number")
    return Options(Safety[risk.upper()], Policy(name), floor, frozenset(include), rewrite)
