"""The range search of llm-compressor's MSE observers: how far a block's amax is shrunk before its scale is made.

Every step works in the precision of the weight, as the exporter does: a bfloat16 model is searched in eight
significant bits, and so is the exponent of its loss.  On bfloat16 and float16 the result is the exporter's own; on
float32 two losses may differ in the last bit, as powers and sums do between devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quant import blocks, threads
from quant.backend import Backend
from quant.cast import decode, encode
from quant.codes import E2M1, E4M3
from quant.errors import NumericError
from quant.floats import Floats, Word, largest, narrow_bf16, round_to, widen

_SIX = np.float32(E2M1.max)
_LIMIT = {
    Word.FLOAT32: np.finfo(np.float32).max,
    Word.FLOAT16: np.float32(65504),
    Word.BFLOAT16: np.float32(float.fromhex("0x1.fep127")),
}
_EPSILON = {Word.FLOAT32: np.float32(2.0**-23), Word.FLOAT16: np.float32(2.0**-10), Word.BFLOAT16: np.float32(2.0**-7)}
_EPSILON_ROUNDED = np.float32(0.125)
_MOST = 10_000
_CHUNK = 1 << 14  # blocks searched at a time: stays in the cache


@dataclass(frozen=True)
class Search:
    """An observer's settings: the range goes from ``expand`` times the amax down in steps of 1 / ``grid``.

    ``maxshrink`` ends it, as do ``patience`` steps without any block of the whole weight gaining; ``norm``: the
    exponent of the loss; ``rounded``: candidates were rounded to E4M3 before the global scale was known, as releases
    before 0.14 did.  Raises NumericError on settings that no observer has.
    """

    maxshrink: float = 0.20
    patience: int = 5
    grid: float = 100.0
    norm: float = 2.4
    expand: float = 1.0
    rounded: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no search."""
        numbers = (self.maxshrink, self.grid, self.norm, self.expand)
        if not all(np.isfinite(number) and number > 0 for number in numbers) or self.expand < 1:
            raise NumericError(f"a range search cannot have these settings: {self}")
        if self.patience < 1 or not 0 < self.maxshrink * self.grid < _MOST:
            raise NumericError(f"a range search cannot have these settings: {self}")

    @property
    def steps(self) -> int:
        """How many ranges are tried at most."""
        return int(self.maxshrink * self.grid)

    def stop(self, gained: NDArray[np.bool_]) -> int:
        """How many steps the exporter took, given at which of them any block of the weight gained: bool [steps]."""
        idle = 0
        for number, better in enumerate(gained):
            idle = 0 if better else idle + 1
            if idle >= self.patience:
                return number + 1
        return self.steps


EXPANDED = Search(maxshrink=1 - 0.8 / 1.8, patience=1000, grid=200.0, expand=1.8)
"""llm-compressor's ``nvfp4_expanded_mse``."""


def shrunk_amax(
    w: Floats,
    search: Search,
    size: int = 16,
    word: Word = Word.FLOAT32,
    stop: int | None = None,
    backend: Backend = Backend.CPU,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Each block's amax after the search, float32 [..., K / size], and at which steps any block gained, bool [steps].

    ``w``: float32, float16 or bfloat16 words [..., K]; ``word``: the precision of the exporter's steps, to which ``w``
    is rounded first; ``stop``: steps to take at most.  Of equal losses the largest range stays; a zero block keeps 0.
    Raises NumericError on NaN, infinity and ragged K.  Both backends give the same.
    """
    blocks.require_whole(w.shape, size)
    largest(w)
    a_BN = np.abs(round_to(widen(w), word)).reshape(-1, size)
    found, gained = np.empty(len(a_BN), np.float32), np.zeros(search.steps, np.bool_)
    steps = search.steps if stop is None else min(stop, search.steps)

    fast = backend is Backend.CPU and word is Word.BFLOAT16 and size == 16 and not search.rounded

    def part(first: int, last: int) -> NDArray[np.bool_]:
        found[first:last], better = (_in_words if fast else _searched)(a_BN[first:last], search, word, steps)
        return better

    for better in threads.run(part, len(a_BN), _CHUNK):
        gained |= better
    return found.reshape(*w.shape[:-1], w.shape[-1] // size), gained


def _in_words(
    a_BN: NDArray[np.float32], search: Search, word: Word, steps: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What ``_searched`` gives, on bfloat16."""
    from quant import cpu_shrink  # Numba: imported where it is first used

    top_B = round_to(a_BN.max(-1, initial=0) * np.float32(search.expand), word)
    factors = (1 - np.arange(steps) / search.grid).astype(np.float32)
    powers = _table(search.norm, word)
    found, better = cpu_shrink.searched(a_BN, top_B, factors, _EPSILON[word], _LIMIT[word], powers)
    return found, np.concatenate([better, np.zeros(search.steps - steps, np.bool_)])


def _searched(
    a_BN: NDArray[np.float32], search: Search, word: Word, steps: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    gained = np.zeros(search.steps, np.bool_)
    top_B = round_to(a_BN.max(-1, initial=0) * np.float32(search.expand), word)
    best_B, amax_B = np.full(len(a_BN), _LIMIT[word], np.float32), top_B.copy()
    for number in range(steps):
        some_B = round_to(top_B * np.float32(1 - number / search.grid), word)
        loss_B = _losses(a_BN, _steps(some_B, search, word), search.norm, word)
        better_B = loss_B < best_B
        gained[number] = better_B.any()
        best_B, amax_B = np.where(better_B, loss_B, best_B), np.where(better_B, some_B, amax_B)
    return amax_B, gained


def _steps(amax_B: NDArray[np.float32], search: Search, word: Word) -> NDArray[np.float32]:
    """What a code step is worth under each range; never 0."""
    step_B = round_to(amax_B / _SIX, word)
    if search.rounded:
        step_B = decode(E4M3, encode(E4M3, step_B).codes)
    return np.where(step_B == 0, _EPSILON_ROUNDED if search.rounded else _EPSILON[word], step_B)


def _losses(a_BN: NDArray[np.float32], step_B: NDArray[np.float32], norm: float, word: Word) -> NDArray[np.float32]:
    """Σ |a - quantised a| ^ norm over each block, every step rounded to ``word`` but the sum itself."""
    step_B1 = step_B[:, None]
    with np.errstate(over="ignore"):
        ratio_BN = np.minimum(round_to(a_BN / step_B1, word), _SIX)
        made_BN = round_to(E2M1.values[encode(E2M1, ratio_BN).codes] * step_B1, word)
        loss_BN = _powers(np.abs(made_BN - a_BN), norm, word)
        while loss_BN.shape[-1] % 2 == 0:  # halves onto halves: an order that every face can keep
            loss_BN = loss_BN[:, : loss_BN.shape[-1] // 2] + loss_BN[:, loss_BN.shape[-1] // 2 :]
        return round_to(loss_BN.sum(-1, dtype=np.float32), word)


def _powers(x: NDArray[np.float32], norm: float, word: Word) -> NDArray[np.float32]:
    """x ^ norm in the precision of ``word``, ``x`` (not negative) rounded to it first."""
    if word is Word.BFLOAT16:
        return _table(norm, word)[narrow_bf16(x)]
    if word is Word.FLOAT16:
        return _table(norm, word)[x.astype(np.float16).view(np.uint16)]
    with np.errstate(over="ignore"):
        return np.power(x.astype(np.float64), np.float64(np.float32(norm))).astype(np.float32)


@cache
def _table(norm: float, word: Word) -> NDArray[np.float32]:
    """The power of every non-negative word, by its bits; the exponent, too, has the precision of the word."""
    bits = np.arange(1 << 15, dtype=np.uint16)
    with np.errstate(all="ignore"):
        values = widen(bits.view(np.float16) if word is Word.FLOAT16 else bits).astype(np.float64)
        exponent = np.float64(round_to(np.asarray([norm], np.float32), word)[0])
        return round_to(np.power(values, exponent).astype(np.float32), word)
