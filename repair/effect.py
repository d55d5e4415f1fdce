"""What a repair does to the weights of a layer: how far they move, predicted from scales and codes.

The dequantised weights depend on a block's scale byte and its codes only, so the sum of the squared codes over all
blocks with one scale byte is all that is needed: the errors below are exact, not estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.codes import E2M1, E4M3

Read = Callable[[TensorRef, int, int], bytes]
ROWS = 1 << 17  # blocks looked at together

# Squared codes in quarters, of the low and of the high nibble of each byte: at most 144.
_LOW, _HIGH = (bytes(int(4 * float(E2M1.values[b >> s & 15]) ** 2) for b in range(256)) for s in (0, 4))


@dataclass(frozen=True)
class Effect:
    """How a layer's weights change.  ``before`` and ``after`` are errors relative to ``of``: root of Σ(w-v)² / Σw².

    None where the error has no number (NaN before, content lost).  ``note`` says what else there is to say.
    """

    layer: str
    of: str
    before: float | None
    after: float | None
    note: str = ""


@dataclass(frozen=True)
class Energy:
    """Blocks of a layer by scale byte: how many, and the sum of their squared codes; float64 [256], exact."""

    blocks: NDArray[np.float64]
    squares: NDArray[np.float64]

    def error(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
        """Relative error when a block with scale byte b goes from step ``old[b]`` to ``new[b]``, float64 [256]."""
        live = self.squares > 0
        moved = math.fsum(self.squares[live] * (new[live] - old[live]) ** 2)
        held = math.fsum(self.squares[live] * old[live] ** 2)
        return math.sqrt(moved / held) if held else 0.0


def energy(layer: QuantizedLayer, read: Read, rows: tuple[int, int] | None = None) -> Energy | None:
    """The layer's blocks by scale byte, of all rows of scales or of [first, last); None where shapes do not agree."""
    geometry = layer.geometry()
    if geometry is None:
        return None
    blocks, squares = np.zeros(256), np.zeros(256)
    unit, inner = geometry.unit, geometry.inner
    first, last = rows or (0, geometry.rows)
    step = max(1, ROWS // inner)
    for row in range(first, last, step):
        count = min(step, last - row)
        scales = np.frombuffer(read(layer.scales, row * inner, count * inner), np.uint8)
        sums = _sums(read(layer.codes, row * inner * unit, count * inner * unit), unit, inner)
        blocks += np.bincount(scales, minlength=256)
        squares += np.bincount(scales, weights=sums, minlength=256)
    squares /= 4
    return Energy(blocks, squares)


def _sums(codes: bytes, unit: int, inner: int) -> NDArray[np.float64]:
    """Sum of the squared codes of each block, in quarters; float64 [blocks], exact."""
    # Both nibbles' squares, as 16-bit lanes that cannot overflow: 8 bytes at a time.
    lane, ones, shift = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0001000100010001), np.uint64(8)
    if inner > 1 or unit % 8:
        both = [np.frombuffer(codes.translate(t), np.uint8).reshape(-1, unit, inner) for t in (_LOW, _HIGH)]
        total = both[0].sum(axis=1, dtype=np.uint32) + both[1].sum(axis=1, dtype=np.uint32)
        return np.asarray(total, np.float64).reshape(-1)
    lanes = np.zeros(len(codes) // 8, np.uint64)
    for table in (_LOW, _HIGH):
        words = np.frombuffer(codes.translate(table), np.uint64)
        lanes += (words & lane) + (words >> shift & lane)
    words = (lanes * ones) >> np.uint64(48)  # the sum of the four lanes: at most 2304
    return np.asarray(words.reshape(-1, unit // 8).sum(axis=1), np.float64)


def counts(layer: QuantizedLayer, read: Read, rows: tuple[int, int] | None = None) -> NDArray[np.int64]:
    """How many block scales of a layer have each byte, int64 [256]; of all rows of scales or of [first, last)."""
    geometry = layer.geometry()
    inner = geometry.inner if geometry else 1
    first, last = (rows[0] * inner, rows[1] * inner) if rows else (0, layer.scales.nbytes)
    total = np.zeros(256, np.int64)
    for at in range(first, last, 1 << 20):
        part = np.frombuffer(read(layer.scales, at, min(1 << 20, last - at)), np.uint8)
        total += np.bincount(part, minlength=256)
    return total


def steps(global_scale: float, divides: bool) -> NDArray[np.float64]:
    """What one code step is worth under each scale byte, float64 [256]; NaN bytes count as 0."""
    values = np.nan_to_num(E4M3.values.astype(np.float64), nan=0.0)
    return values / global_scale if divides else values * global_scale
