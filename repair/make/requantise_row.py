"""What there is to say of a weight that was quantised, and of all weights of one kind together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from auditor.architecture import generalised
from quant.metrics import ErrorSums
from repair.make.shard import Row


@dataclass(frozen=True)
class Requantised(Row):
    """What became of one weight, ``tensor`` being its module.

    ``amax``: that of its set, of ``members`` weights; ``count``, ``squared`` and ``source``: see `ErrorSums`.
    """

    method: str
    amax: float
    members: int
    count: int
    squared: float
    source: float
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Kind:
    """Weights that only layer and expert numbers tell apart: ``name`` has a star for each.  Sums over all of them."""

    name: str
    method: str
    modules: int
    amax: tuple[float, float]
    errors: ErrorSums
    bytes_in: int
    bytes_out: int


def kinds(rows: Iterable[Row]) -> list[Kind]:
    """One for each kind, in the order of their names."""
    groups: dict[str, list[Requantised]] = {}
    for row in rows:
        if isinstance(row, Requantised):
            groups.setdefault(generalised(row.tensor), []).append(row)
    return [_total(name, some) for name, some in sorted(groups.items())]


def total_of(rows: Iterable[Row]) -> Kind:
    """All rows as one."""
    return _total("", [row for row in rows if isinstance(row, Requantised)])


def _total(name: str, some: list[Requantised]) -> Kind:
    errors = sum((ErrorSums(row.count, row.squared, row.source) for row in some), ErrorSums())
    return Kind(
        name,
        some[0].method if some else "",
        len(some),
        (min((row.amax for row in some), default=0.0), max((row.amax for row in some), default=0.0)),
        errors,
        sum(row.bytes_in for row in some),
        sum(row.bytes_out for row in some),
    )
