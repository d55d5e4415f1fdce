"""How far two dequantised weights are from each other, block by block: the definition, and who computes it.

Both sides are first made float32: floats are widened exactly, codes are dequantised as their scheme says (code times
step, where the step is the block scale multiplied or divided by the global scale, rounded to float32), a gain
multiplies afterwards.  From there on everything is float64: differences, squares and sums.  A block counts as exact
when all its float32 values are equal (-0 equals +0), and as equal to rounding when it is not exact but its squared
error is at most 2^-44 of its energy: what the float32 arithmetic of two conventions leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant import blocks
from quant.backend import Backend
from quant.errors import NumericError
from quant.floats import Floats, widen, words
from quant.metrics import ErrorSums
from quant.quantised import Quantised

ROUNDING = 2.0**-44  # squared error over energy: 2^-22 of the values


@dataclass(frozen=True, eq=False)
class Operand:
    """Rows ``rows`` of ``weights``: floats [.., K] of any precision, or codes.  ``gain``: float32 [K] or None.

    ``across``: all is transposed: floats [K, N]; codes [K / 2, N] where two share a byte, scales [K / block, N].
    """

    weights: Floats | Quantised
    rows: range
    gain: NDArray[np.float32] | None = None
    across: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows that take part, and columns."""
        held, axis = self.weights, 0 if self.across else -1
        if not isinstance(held, Quantised):
            return len(self.rows), held.shape[axis]
        return len(self.rows), held.stored.shape[axis] * (2 if held.scheme.packed else 1)

    def values(self) -> NDArray[np.float32]:
        """The rows as float32 [rows, K]."""
        held = self.weights
        if self.across:
            held = held.T if not isinstance(held, Quantised) else _turned(held)
        whole = held.weights() if isinstance(held, Quantised) else widen(held)
        rows = whole[self.rows.start : self.rows.stop : self.rows.step]
        with np.errstate(all="ignore"):
            return rows if self.gain is None else rows * self.gain


def _turned(held: Quantised) -> Quantised:
    return replace(held, stored=held.stored.T, scales=held.scales.T)


class Spot(NamedTuple):
    """A block: its squared error (infinite when it is not a number), its first row and column.

    ``step``: what one code step of b is worth there, None where b is float.
    """

    error: float
    row: int
    column: int
    step: float | None = None


@dataclass(frozen=True)
class Distance:
    """Errors of one weight against another.  ``a + b``: of both together, without the spots: each has its own rows.

    ``incomparable``: elements that are NaN on both sides, or the same infinity; they are in no sum.  ``broken``:
    elements that are not finite on one side, or not the same way; they make the sums NaN or infinite.
    """

    sums: ErrorSums = field(default_factory=ErrorSums)
    blocks: int = 0
    exact: int = 0
    rounding: int = 0
    incomparable: int = 0
    broken: int = 0
    worst: tuple[Spot, ...] = ()

    def __add__(self, other: Distance) -> Distance:
        """The sum; a largest error that is NaN stays NaN."""
        total = self.sums + other.sums
        if math.isnan(total.squared):
            total = replace(total, largest=math.nan)
        return Distance(
            total,
            self.blocks + other.blocks,
            self.exact + other.exact,
            self.rounding + other.rounding,
            self.incomparable + other.incomparable,
            self.broken + other.broken,
        )


def distance(a: Operand, b: Operand, block: tuple[int, int], keep: int = 0, backend: Backend = Backend.CPU) -> Distance:
    """Errors of ``b`` against the reference ``a``, and the ``keep`` worst blocks of ``block`` (rows, columns).

    Row and column of a spot count from the operands' first; a block at an edge may be partial.  A block with nothing
    to compare in it is not exact, and none of no error is among the worst.  Both backends agree but for the last bits
    of the sums (relative 1e-12) and the order of blocks whose errors differ by as little.  Raises NumericError when
    shapes differ or only one side lies across, and in the kernel when packed codes are to be cut into blocks whose
    width is no multiple of 16, and for what `cpu_across` does not take.
    """
    if a.shape != b.shape:
        raise NumericError(f"cannot compare shapes {a.shape} and {b.shape}")
    if a.across != b.across:
        raise NumericError("of two weights only one lies across")
    if backend is Backend.CPU:
        from quant import cpu_across, cpu_distance  # Numba: imported where it is first used

        if a.across:
            return cpu_across.distance(a, b, block, keep)
        return cpu_distance.distance(a, b, block, keep)
    found = _reference(a.values().astype(np.float64), b.values().astype(np.float64), block, keep)
    return replace(found, worst=tuple(spot._replace(step=_step(b, spot)) for spot in found.worst))


def _step(b: Operand, spot: Spot) -> float | None:
    if not isinstance(b.weights, Quantised):
        return None
    held = _turned(b.weights) if b.across else b.weights
    step = blocks.spread(held.steps(), (len(held.stored), b.shape[1]), held.scheme.block)
    return float(step[b.rows[spot.row], spot.column])


def identical(a: Floats, b: Floats) -> bool:
    """Whether two arrays of one shape and precision hold the same finite numbers, bit for bit."""
    from quant import cpu_distance

    return words(a)[0] is words(b)[0] and a.shape == b.shape and cpu_distance.identical(a, b)


def _reference(a: NDArray[np.float64], b: NDArray[np.float64], block: tuple[int, int], keep: int) -> Distance:
    skip = (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & (a == b))
    broken = int(np.count_nonzero((~np.isfinite(a) | ~np.isfinite(b)) & ~skip))
    a, b = np.where(skip, 0, a), np.where(skip, 0, b)
    with np.errstate(invalid="ignore"):
        squared = (a - b) ** 2
        sums = ErrorSums(
            int(a.size - np.count_nonzero(skip)),
            float(squared.sum()),
            float((a * a).sum()),
            float((b * b).sum()),
            float((a * b).sum()),
            float(np.sqrt(squared).max(initial=0)),
        )
    spots: list[Spot] = []
    exact = rounding = count = 0
    for row in range(0, a.shape[0], block[0]):
        for column in range(0, a.shape[1], block[1]):
            here = np.s_[row : row + block[0], column : column + block[1]]
            error, hidden = float(squared[here].sum()), bool(skip[here].any())
            count += 1
            exact += error == 0 and not hidden
            rounding += not hidden and 0 < error <= ROUNDING * float((b[here] ** 2).sum())
            if error != 0:
                spots.append(Spot(error if math.isfinite(error) else math.inf, row, column))
    spots.sort(key=lambda s: (-s.error, s.row, s.column))
    return Distance(sums, count, exact, rounding, a.size - sums.count, broken, tuple(spots[:keep]))
