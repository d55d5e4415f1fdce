"""What is shown of a comparison, in which order, and the exit code it deserves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from reports.columns import Value
from reports.escape import visible
from reports.report import Exit

if TYPE_CHECKING:
    from repair.distance_result import Comparison, TensorDistance

SORTS = ("sqnr", "mse", "max", "cosine", "exact", "name", "file")
FORMATS = ("table", "plain", "json", "jsonl", "csv", "parquet", "markdown")

# Column -> pandas dtype.  Columns may be added at the end, never renamed, moved or retyped.
DISTANCES: Mapping[str, str] = {
    "a": "string",
    "b": "string",
    "tensor": "string",
    "expert": "Int64",  # empty for a tensor as a whole
    "source": "string",  # names in A, separated by spaces
    "source_format": "string",
    "format": "string",
    "shard": "string",
    "experts": "Int64",
    "rows": "Int64",
    "columns": "Int64",
    "count": "Int64",  # weights compared
    "mse": "Float64",
    "sqnr": "Float64",  # dB
    "max_error": "Float64",
    "cosine": "Float64",
    "blocks": "Int64",
    "exact_blocks": "Int64",
    "rounding_blocks": "Int64",
    "incomparable": "Int64",
    "broken": "Int64",
    "failed": "boolean",
}


@dataclass(frozen=True)
class Ranking:
    """A comparison and the choice of what to show of it.

    ``max_mse``, ``min_sqnr``: limits for each tensor, None for none; ``sort``: one of SORTS, the worst first;
    ``limit``: rows listed, None for all; ``worst``: blocks listed.
    """

    comparison: Comparison
    max_mse: float | None = None
    min_sqnr: float | None = None
    sort: str = "sqnr"
    limit: int | None = None
    worst: int = 5

    @cached_property
    def rows(self) -> tuple[TensorDistance, ...]:
        """The tensors in order; ties keep the order of B."""
        key = _KEYS.get(self.sort)
        tensors = self.comparison.tensors
        return tuple(sorted(tensors, key=key)) if key else tensors

    @property
    def shown(self) -> tuple[TensorDistance, ...]:
        """Those of them that are listed."""
        return self.rows[: self.limit]

    @cached_property
    def failing(self) -> tuple[TensorDistance, ...]:
        """The tensors that are worse than a limit, or not finite on one side only."""
        return tuple(t for t in self.rows if self.failed(t))

    def failed(self, tensor: TensorDistance) -> bool:
        """Whether this tensor is among them."""
        return tensor.fails(self.max_mse, self.min_sqnr)

    def exit_code(self, *, strict: bool = False) -> Exit:
        """3 when something could not be read or nothing was compared, 1 when a tensor fails, else 0.

        ``strict``: 3 also when a tensor has no counterpart or an element could not be compared.
        """
        done = self.comparison
        left = bool(done.unmatched) or any(t.found.incomparable for t in done.tensors)
        if done.unread or not any(t.comparable for t in done.tensors) or (strict and left):
            return Exit.UNCHECKED
        return Exit.FINDINGS if self.failing else Exit.CLEAN


def _down(value: float) -> tuple[bool, float]:
    """A key by which NaN comes first, then the largest."""
    return not math.isnan(value), -value if not math.isnan(value) else 0.0


def _up(value: float) -> tuple[bool, float]:
    return not math.isnan(value), value if not math.isnan(value) else 0.0


_KEYS: Mapping[str, Callable[[TensorDistance], tuple[object, ...]]] = {
    "sqnr": lambda t: (_up(t.sums.sqnr), _down(t.sums.mse)),
    "mse": lambda t: (_down(t.sums.mse),),
    "max": lambda t: (_down(t.sums.largest),),
    "cosine": lambda t: (_up(t.sums.cosine),),
    "exact": lambda t: (t.found.exact / max(t.found.blocks, 1), _up(t.sums.sqnr)),
    "name": lambda t: (t.tensor, t.expert or 0),
}


def distance_rows(ranking: Ranking) -> Iterator[tuple[Value, ...]]:
    """One row a tensor, in the order and up to the limit of the ranking; names are escaped."""
    a, b = visible(ranking.comparison.a), visible(ranking.comparison.b)
    for t in ranking.shown:
        names = (visible(t.tensor), t.expert, " ".join(map(visible, t.sources)), t.source_format, t.format)
        sizes = (visible(t.shard), t.experts, t.rows, t.columns, t.sums.count)
        figures = (t.sums.mse, t.sums.sqnr, t.sums.largest, t.sums.cosine)
        found = t.found
        counts = (found.blocks, found.exact, found.rounding, found.incomparable, found.broken)
        yield (a, b, *names, *sizes, *figures, *counts, ranking.failed(t))
