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

_SQUARES = np.array([float(E2M1.values[b & 15]) ** 2 + float(E2M1.values[b >> 4]) ** 2 for b in range(256)], np.float32)


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
    ones = np.ones(unit, np.float32)
    for row in range(first, last, step):
        count = min(step, last - row)
        scales = np.frombuffer(read(layer.scales, row * inner, count * inner), np.uint8)
        codes = np.frombuffer(read(layer.codes, row * inner * unit, count * inner * unit), np.uint8)
        shape = (count, unit, inner) if inner > 1 else (count, unit)
        # At most 2 * unit * 36: exact in float32.
        sums = (
            np.einsum("rui->ri", _SQUARES[codes].reshape(shape)) if inner > 1 else _SQUARES[codes].reshape(shape) @ ones
        )
        blocks += np.bincount(scales, minlength=256)
        squares += np.bincount(scales, weights=sums.reshape(-1), minlength=256)
    return Energy(blocks, squares)


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
