"""How a fused set of MXFP4 tensors is cast to NVFP4: one global scale, chosen from scales first and codes where needed.

With m = k_max - 8 (k_max over blocks that have a non-zero code) all blocks within 17 octaves of the largest are exact
and keep their codes.  Where some are further away and cannot move into the window, m may sink by as much as doubling
the top blocks' codes allows; what is not exact then is rounded, and when requantising the whole set from its amax loses
less in sum, that is done instead.

A set is read in pieces of bounded size, so that a tensor of any size can be cast; codes are read only where the scales
do not tell: one row for the largest live block and one for the smallest, and more where blocks are zero or far away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quant import mx, nvfp4
from quant.cast import unpack_nibbles
from quant.mx_rows import Rows, blocks, chunks, live_range, survey
from quant.mx_window import HIGH, LOW, MOST, Blocks, Moved, new_scales
from quant.scheme import MXFP4

_TOP = float(np.finfo(np.float32).max)


class Way(StrEnum):
    """How a set was cast (of several experts: REQUANTISED if any of them was)."""

    CLOSED_FORM = "closed form"
    REQUANTISED = "requantised"


@dataclass(frozen=True)
class Outcome:
    """What becomes of one tensor of a set; blocks are NVFP4's, of 16.

    ``low``, ``high``: smallest and largest k of its live blocks, None when there are none.  ``energy``: sum of its
    squared weights, 0 where the whole set is exact, as nobody asks; ``error``: sum of squared errors.
    """

    low: int | None
    high: int | None
    blocks: int
    exact: int
    error: float = 0.0
    energy: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """How a set is cast.  ``m``: exponent of the closed form's global scale, also where it lost.

    ``verbatim``: every code stays as it is, whatever rows are asked for.  ``outcomes``: one for each tensor.
    """

    m: int
    way: Way
    method: nvfp4.Method | None
    amax: float
    verbatim: bool
    outcomes: tuple[Outcome, ...]

    @property
    def global_scale(self) -> np.float32:
        """The global scale that block scales are multiplied by."""
        if self.method is None:
            return np.float32(np.ldexp(np.float32(1), self.m))
        return np.float32(nvfp4.weight_scale_2(np.float32(self.amax)))

    @property
    def divisor(self) -> np.float32:
        """The same as compressed-tensors has it: block scales are divided by it.

        Of a requantised set it is 2688 / amax rounded once; the reciprocal of the other would be rounded twice.
        """
        if self.method is None:
            return np.float32(np.ldexp(np.float32(1), -self.m))
        return np.float32(float(nvfp4.NORM) * 6 / self.amax)

    def keeps(self, scales: NDArray[np.uint8]) -> bool:
        """Whether rows with these scales keep their codes, so that `new_scales` is all there is to do."""
        if self.verbatim or self.method is not None or not scales.size:
            return self.verbatim
        k = int(scales.min()) - mx.BIAS, int(scales.max()) - mx.BIAS
        return k[0] - self.m >= LOW and k[1] - self.m <= HIGH

    def new_scales(self, scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """E4M3 codes [rows, K / 16] of rows that keep their codes."""
        return new_scales(scales, self.m)

    def carried_out(self, part: Rows, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Codes and scales of rows ``first`` to ``last``: uint8 [rows, K / 2] and [rows, K / 16]."""
        scales = part.scales(first, last)
        if self.keeps(scales):
            return part.packed(first, last), self.new_scales(scales)
        made = [self.cast(part.packed(a, b), part.scales(a, b)) for a, b in chunks(part, begin=first, end=last)]
        return np.concatenate([one.packed for one in made]), np.concatenate([one.scales for one in made])

    def cast(self, packed: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Moved:
        """Rows under the plan: ``packed`` uint8 [rows, K / 2], ``scales`` uint8 [rows, K / 32]."""
        if self.method is None:
            return Blocks(packed, scales).cast(self.m)
        return _requantised(packed, scales, self.amax, self.method)


def plan(parts: Sequence[Rows]) -> Plan:
    """The plan of a fused set.  Raises NumericError, naming tensor and index, on scale code 255."""
    extremes = [survey(part) for part in parts]
    live = [live_range(part, *ends) for part, ends in zip(parts, extremes, strict=True)]
    tops = [found[1] for found in live if found]
    if not tops:
        return _closed(parts, live, 0)
    m = max(tops) - HIGH
    if all(found is None or found[0] - m >= LOW for found in live):
        return _closed(parts, live, m)
    if not all(_can(part, m) for part in parts):
        m = _sunk(parts, max(tops))
    return _measured(parts, live, m)


def _outside(part: Rows, m: int) -> Iterator[Blocks]:
    """The pieces of a tensor in which some scale code lies outside the window of ``m``."""
    for first, last in chunks(part):
        scales = part.scales(first, last)
        if scales.size and (int(scales.min()) - mx.BIAS - m < LOW or int(scales.max()) - mx.BIAS - m > HIGH):
            yield blocks(part, first, last, scales)


def _can(part: Rows, m: int) -> bool:
    return all(piece.shifts(m)[1].all() for piece in _outside(part, m))


def _sunk(parts: Sequence[Rows], k_max: int) -> int:
    """m lower than k_max - 8 by what doubling the top blocks' codes allows."""
    least = k_max - MOST
    for part in parts:
        for first, last in chunks(part):
            scales = part.scales(first, last)
            if scales.size and int(scales.max()) - mx.BIAS > least:
                piece = blocks(part, first, last, scales)
                at = np.flatnonzero(piece.live & (piece.k > least))
                if at.size:
                    least = max(least, int((piece.k[at] - piece.slack(at)[1]).max()))
    return least - HIGH


def _closed(parts: Sequence[Rows], live: Sequence[tuple[int, int] | None], m: int) -> Plan:
    """The plan of a set in which every block keeps its codes."""
    counts = [2 * part.rows * part.blocks for part in parts]
    outcomes = [_outcome(ends, count, count) for ends, count in zip(live, counts, strict=True)]
    return Plan(m, Way.CLOSED_FORM, None, 0.0, True, tuple(outcomes))


def _outcome(ends: tuple[int, int] | None, blocks: int, exact: int, error: float = 0.0, energy: float = 0.0) -> Outcome:
    low, high = ends or (None, None)
    return Outcome(low, high, blocks, exact, error, energy)


def _measured(parts: Sequence[Rows], live: Sequence[tuple[int, int] | None], m: int) -> Plan:
    """The plan of a set in which some codes change: the closed form, or what loses less."""
    made = _Sums(parts)
    for number, part in enumerate(parts):
        for piece in _outside(part, m):
            made.add(number, piece.cast(m))
    method, amax = None, 0.0
    if made.total:
        energies, amax = _energies(parts)
        if amax <= _TOP:  # 4 · 2^126 is beyond float32: no way but the closed form
            for other in (nvfp4.Method.DYNAMIC, nvfp4.Method.SWEEP):
                plain = _plain(parts, amax, other, made.total)
                made, method = (plain, other) if plain else (made, method)
    else:
        energies = [0.0] * len(parts)
    way = Way.CLOSED_FORM if method is None else Way.REQUANTISED
    outcomes = [
        _outcome(ends, 2 * part.rows * part.blocks, 2 * part.rows * part.blocks - made.wrong[i], made.error[i], energy)
        for i, (part, ends, energy) in enumerate(zip(parts, live, energies, strict=True))
    ]
    return Plan(m, way, method, amax, False, tuple(outcomes))


class _Sums:
    """Errors of the tensors of a set, added piece by piece in a fixed order: the total only grows."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.total = 0.0
        self.wrong = [0] * len(parts)
        self.error = [0.0] * len(parts)

    def add(self, number: int, moved: Moved) -> None:
        lost = float(moved.error.sum())
        self.total += lost
        self.error[number] += lost
        self.wrong[number] += int(np.count_nonzero(moved.error))


def _plain(parts: Sequence[Rows], amax: float, method: nvfp4.Method, below: float) -> _Sums | None:
    """The errors of requantising the set; None as soon as they are no smaller than ``below``."""
    made = _Sums(parts)
    for number, part in enumerate(parts):
        for first, last in chunks(part):
            made.add(number, _requantised(part.packed(first, last), part.scales(first, last), amax, method))
            if made.total >= below:
                return None
    return made


def _requantised(packed: NDArray[np.uint8], scales: NDArray[np.uint8], amax: float, method: nvfp4.Method) -> Moved:
    """Rows dequantised and quantised anew under the set's common amax, as plain requantisation does."""
    w = MXFP4.dequantise(unpack_nibbles(packed), scales)
    new = nvfp4.quantise(w, np.float32(amax), method=method)
    err = (w.astype(np.float64) - new.weights()).reshape(-1, 16)
    error = (err * err).sum(1).reshape(new.scales.shape)
    return Moved(new.stored, np.asarray(new.scales, np.uint8), error)


def _energies(parts: Sequence[Rows]) -> tuple[list[float], float]:
    """Sum of squared weights of each tensor, and the set's amax."""
    found = [_energy(part) for part in parts]
    return [energy for energy, _ in found], max((amax for _, amax in found), default=0.0)


def _energy(part: Rows) -> tuple[float, float]:
    energy, amax = 0.0, 0.0
    for first, last in chunks(part):
        piece = blocks(part, first, last)
        energy, amax = energy + piece.energy(), max(amax, piece.amax())
    return energy, amax


def energy(part: Rows) -> float:
    """Sum of the squared weights of a tensor; all its codes are read."""
    return _energy(part)[0]
