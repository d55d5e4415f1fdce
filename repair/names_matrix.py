"""A weight of the source, the rows of it that a layer needs, and how both are told to people."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from repair.source_codes import Grid


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight of the source: a float tensor, or a quantised layer (``layer``) that can be read as floats.

    ``shape``: [N, K] or [E, N, K]; of a float tensor as stored, of a quantised layer with the rows first.
    """

    name: str  # the module's name: without ".weight"
    ref: TensorRef
    shape: tuple[int, ...]
    layer: QuantizedLayer | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """Rows ``rows`` of slab ``slab`` of a source matrix: they become rows ``into`` of expert ``expert``."""

    matrix: Matrix
    slab: int
    transposed: bool  # the slab is stored [K, N]
    rows: range
    expert: int
    into: range


def inner(matrix: Matrix, shape: Grid, expert: int) -> int:
    """Rows of one expert in a matrix of all of them; 0 where the shapes do not fit."""
    if len(matrix.shape) != 2 or matrix.layer is not None or matrix.shape[1] not in shape[1:]:
        return 0
    high = shape.rows if matrix.shape[1] == shape.columns else shape.columns
    return high if high and matrix.shape[0] % high == 0 and (expert + 1) * high <= matrix.shape[0] else 0


def say(shape: Grid, rows: int = 0) -> str:
    """A shape in words, with other rows where they are given."""
    slabs = f"{shape.experts} x " if shape.experts > 1 else ""
    return f"{slabs}[{rows or shape.rows}, {shape.columns}]"


def misfit(wanted: str, found: Matrix) -> str:
    """What is wrong with a source matrix of the right name."""
    return f"needs a source of shape {wanted}, but {found.ref.name} has {list(found.shape)}"
