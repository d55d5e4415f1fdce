"""What a comparison of two checkpoints gives: a row for each tensor, the worst blocks, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import NamedTuple

from quant.distance import Distance, Spot
from quant.metrics import ErrorSums
from repair.distance_pairs import Pair, Unmatched
from repair.distance_read import Piece
from repair.source_codes import scale_lines


class WorstBlock(NamedTuple):
    """A block of B: where it is and how wrong.

    ``error``: Σ(a - b)², infinite where that is no number; ``rows`` and ``columns``: (first, one past the last), of
    one expert's weight, output rows first; ``offset``: absolute byte offset in ``shard`` of the block's scale, of its
    first weight where B is float; ``scale``: what one code step is worth, None where B is float.
    """

    error: float
    tensor: str
    expert: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    shard: str
    offset: int
    scale: float | None


@dataclass(frozen=True)
class TensorDistance:
    """One weight of B against the rows of A that it stands for; ``expert`` is None for a tensor as a whole.

    ``sources``: names in A; ``format`` and ``source_format``: layout, or dtype of a float tensor; ``rows`` and
    ``columns`` of one expert; ``blocks``, ``exact``, ``rounding``, ``incomparable``, ``broken``: see
    `quant.distance.Distance`.
    """

    tensor: str
    shard: str
    expert: int | None
    sources: tuple[str, ...]
    format: str
    source_format: str
    experts: int
    rows: int
    columns: int
    quantised: bool  # whether either side is
    found: Distance
    worst: tuple[WorstBlock, ...]

    @property
    def sums(self) -> ErrorSums:
        """Sums over all elements that can be compared."""
        return self.found.sums

    @property
    def comparable(self) -> bool:
        """Whether there was an element to compare."""
        return self.sums.count > 0

    def fails(self, max_mse: float | None, min_sqnr: float | None) -> bool:
        """Whether it is worse than a limit; a value that is not finite on one side only is worse than any."""
        if self.found.broken:
            return True
        over = max_mse is not None and not self.sums.mse <= max_mse
        return over or (min_sqnr is not None and not self.sums.sqnr >= min_sqnr)


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison found, and what it could not compare.

    ``tensors`` in the order of B; ``unread``: files and tensors that could not be read; ``ignored``: how many tensors
    hold no weights, by kind, of both sides together.
    """

    a: str
    b: str
    tensors: tuple[TensorDistance, ...]
    unmatched: tuple[Unmatched, ...]
    unread: tuple[Unmatched, ...]
    ignored: Counter[str] = field(default_factory=Counter)
    bytes_compared: int = 0

    @cached_property
    def chosen(self) -> tuple[TensorDistance, ...]:
        """Tensors that are quantised on a side; all that differ where none is."""
        chosen = [t for t in self.tensors if t.quantised]
        return tuple(chosen or [t for t in self.tensors if t.sums.squared != 0])

    @cached_property
    def broken(self) -> int:
        """How many of them are not finite on one side only: `total` is over the others, unless none is left."""
        return sum(t.found.broken > 0 for t in self.chosen)

    @cached_property
    def total(self) -> Distance:
        """Over the chosen tensors whose sums are numbers; over all of them where there are no such tensors."""
        finite = [t.found for t in self.chosen if not t.found.broken]
        return reduce(lambda a, b: a + b, finite or [t.found for t in self.chosen], Distance())

    def worst(self, count: int) -> tuple[WorstBlock, ...]:
        """The blocks of the largest squared error, the largest first; on a tie in the order of the tensors."""
        blocks = (block for tensor in self.tensors for block in tensor.worst)
        return tuple(sorted(blocks, key=lambda block: -block.error)[:count])


class At(NamedTuple):
    """A block of a pair before its place in the files is looked up; rows and columns of one expert of B."""

    error: float
    expert: int
    row: int
    column: int
    step: float | None


def located(pair: Pair, piece: Piece, spot: Spot) -> At:
    """A spot of a piece as a block of the pair."""
    if pair.flat:
        return At(spot.error, 0, *divmod(piece.rows.start + spot.column, pair.shape.columns), spot.step)
    left = piece.columns.start if piece.columns else 0
    return At(spot.error, piece.expert, piece.rows[spot.row], left + spot.column, spot.step)


def worst_blocks(pair: Pair, spots: Iterable[At], keep: int) -> tuple[WorstBlock, ...]:
    """The ``keep`` blocks of the largest error, largest first, with their places in the files."""
    high, wide = pair.block
    found = []
    for at in sorted(spots, key=lambda at: (-at.error, at.expert, at.row, at.column))[:keep]:
        rows = at.row, min(at.row + high, pair.shape.rows)
        columns = at.column, min(at.column + wide, pair.shape.columns)
        offset = _place(pair, at.expert, at.row, at.column)
        found.append(WorstBlock(at.error, pair.ref.name, at.expert, rows, columns, pair.ref.shard, offset, at.step))
    return tuple(found)


def _place(pair: Pair, expert: int, row: int, column: int) -> int:
    """Absolute byte offset in B's shard of a block's scale, of its first weight where B is float."""
    shape, ref = pair.shape, pair.ref
    if pair.layer is None:
        at = row + column * shape.rows if pair.transposed else row * shape.columns + column
        return ref.start + (expert * shape.rows * shape.columns + at) * ref.itemsize
    scales, lines = pair.layer.scales, scale_lines(pair.layer)
    if lines is None:
        return scales.start + (expert * scales.itemsize if scales.size > 1 else 0)
    across, wide = row // pair.block[0], column // pair.block[1]
    at = wide * lines.rows + across if lines.across else across * lines.width + wide
    return scales.start + (expert * lines.rows * lines.width + at) * scales.itemsize
