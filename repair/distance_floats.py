"""Float tensors whose counterpart has another shape: fused where the other is not, transposed, or quantised.

They are looked up as layers are: as a layer whose codes are floats.  Biases are matrices of one column.
"""

from __future__ import annotations

from auditor.formats.base import Format, Role
from auditor.layer import QuantizedLayer, Recognised
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.names import Names
from repair.names_matrix import Matrix, Region
from repair.source import Source
from repair.source_codes import WORDS, Grid, grid

_ROWS_FIRST = Format("float", {})
_COLUMNS_FIRST = Format("float, transposed", {}, axis=-2)
Found = tuple[Grid, tuple[Region, ...], bool]


class FloatNames:
    """Finds the rows of the reference that a float tensor stands for."""

    def __init__(self, source: Source, recognised: Recognised) -> None:
        """``recognised``: the side whose tensors are looked up; ``source``: the reference."""
        self._names = source.names
        self._tensors = {ref.name: ref for ref in recognised.plain}
        ours = [column for ref in recognised.plain if (column := _column(ref))]
        theirs = [column for ref in source.recognised.plain if (column := _column(ref))]
        self._biases = Names(
            {matrix.name: None for matrix in ours},
            {matrix.name: matrix for matrix in theirs},
            {matrix.name: matrix.shape[0] for matrix in ours if len(matrix.shape) == 2},
            source.names.interleaved,
        )

    def regions(self, ref: TensorRef, why: RepairError) -> Found:
        """Grid, regions, and whether ``ref`` is stored [.., K, N]; RepairError when there are none.

        ``why``: why there is no tensor of the same shape; raised again where nothing better can be said.
        """
        column = _column(ref)
        if column is not None:
            return self._look(self._biases, column.name, column.ref, _ROWS_FIRST)
        if len(ref.shape) not in (2, 3):
            raise why
        name = ref.name.removesuffix(".weight")
        if len(ref.shape) == 2:
            return self._look(self._names, name, ref, _ROWS_FIRST)
        found: list[Found] = []
        reason = why
        for layout in (_ROWS_FIRST, _COLUMNS_FIRST):
            try:
                found.append(self._look(self._names, name, ref, layout))
            except RepairError as error:
                reason = error
        if not found:
            raise why if "no float tensor" not in str(why) else reason
        return found[0] if len(found) == 1 else found[self._is_turned(ref)]

    def _look(self, names: Names, name: str, ref: TensorRef, layout: Format) -> Found:
        layer = QuantizedLayer(name, name.rpartition(".")[0], layout, {Role.CODES: ref})
        return grid(layer), names.regions(layer), layout is _COLUMNS_FIRST

    def _is_turned(self, ref: TensorRef) -> bool:
        """Whether the square slabs of ``ref`` are stored [K, N], which those of the other projection tell."""
        parent, _, leaf = ref.name.removesuffix(".weight").rpartition(".")
        other = self._tensors.get(f"{parent}.{'gate_up_proj' if leaf == 'down_proj' else 'down_proj'}")
        if other is None or len(other.shape) != 3 or other.shape[1] == other.shape[2]:
            raise RepairError(f"ambiguous: the slabs of {ref.name} are square")
        # gate_up is [2I, H] or [H, 2I] and down [H, I] or [I, H]: the square one's side is H.
        return other.shape[1 if leaf == "down_proj" else 2] == ref.shape[1]


def _column(ref: TensorRef) -> Matrix | None:
    """A bias as a matrix of one column, named for its module; None for any other tensor."""
    for suffix, axes in ((".bias", 1), ("_bias", 2)):
        if ref.name.endswith(suffix) and len(ref.shape) == axes and ref.dtype in WORDS:
            shape = (*ref.shape, 1)
            return Matrix(ref.name.removesuffix(suffix), ref._replace(shape=shape), shape)
    return None
