"""What there is to say of a tensor that was cast to NVFP4."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from quant.mx_plan import Outcome, Plan, Way
from repair.make.shard import Row


@dataclass(frozen=True)
class CastRow(Row):
    """One tensor, or a part of it: the parts of a tensor are added up by `joined`.  Blocks are of 16.

    ``scales``: global scales, from 2^``m_low`` to 2^``m_high``.  ``spread``: octaves from the smallest to the largest
    live block under one of them, -1 when no block is live.  ``error`` and ``energy``: sums of squares; the energy of a
    tensor that is exact is not asked for.  ``copied``: bytes of codes that the kernel copied.
    """

    scales: int
    spread: int
    m_low: int
    m_high: int
    blocks: int
    exact: int
    error: float
    energy: float
    requantised: int
    copied: int = 0

    @property
    def snr(self) -> float:
        """Signal to noise in decibels; infinity where every block is exact."""
        if not self.error:
            return math.inf
        return 10 * math.log10(self.energy / self.error) if self.energy else -math.inf


def row_of(tensor: str, plan: Plan, outcome: Outcome, copied: int = 0) -> CastRow:
    """The row of one tensor of a planned set; its spread is the whole set's."""
    ends = [(one.low, one.high) for one in plan.outcomes if one.low is not None and one.high is not None]
    spread = max(high for _, high in ends) - min(low for low, _ in ends) if ends else -1
    lost = int(plan.way is Way.REQUANTISED)
    return CastRow(
        tensor, 1, spread, plan.m, plan.m, outcome.blocks, outcome.exact, outcome.error, outcome.energy, lost, copied
    )


def only_energy(tensor: str, energy: float) -> CastRow:
    """What is added to a tensor's row when its energy is known."""
    return CastRow(tensor, 0, -1, 0, 0, 0, 0, 0.0, energy, 0)


def joined(rows: Iterable[Row]) -> list[CastRow]:
    """One row for each tensor, in the order in which they came first."""
    found: dict[str, CastRow] = {}
    for row in rows:
        if isinstance(row, CastRow):
            found[row.tensor] = _added(found[row.tensor], row) if row.tensor in found else row
    return list(found.values())


def total(rows: Iterable[CastRow]) -> CastRow | None:
    """All rows as one, but for the ratio of signal to noise, which has no meaning then; None when there are none."""
    made: CastRow | None = None
    for row in rows:
        made = row if made is None else _added(made, row)
    return made


def _added(a: CastRow, b: CastRow) -> CastRow:
    return CastRow(
        a.tensor,
        a.scales + b.scales,
        max(a.spread, b.spread),
        min((one.m_low for one in (a, b) if one.scales), default=0),
        max((one.m_high for one in (a, b) if one.scales), default=0),
        a.blocks + b.blocks,
        a.exact + b.exact,
        a.error + b.error,
        a.energy + b.energy,
        a.requantised + b.requantised,
        a.copied + b.copied,
    )
