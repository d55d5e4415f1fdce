"""MXFP4 tensors of a checkpoint as rows, and the plan that the tensors of a fused set share."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from quant.mx_plan import Plan, plan
from quant.scheme import MXFP4
from repair.make.sources import Sources
from repair.restore_pieces import read_array

_WIDEST = 1 << 24  # bytes of codes in a row: a weight of 33 million inputs
_RANGE = 126  # 2^-126 … 2^126: normal as float32, and so is the reciprocal


def is_mxfp4(layer: QuantizedLayer) -> bool:
    """Whether a layer's weights are MXFP4, in whatever layout."""
    return layer.format.scheme is MXFP4


class TensorRows:
    """Rows ``begin`` to ``begin + rows`` of an MXFP4 tensor: a `quant.mx_rows.Rows` that reads from the shards.

    RepairError, naming both tensors, when the shapes of codes and scales do not fit together.
    """

    def __init__(self, layer: QuantizedLayer, sources: Sources, begin: int = 0, rows: int | None = None) -> None:
        self.codes, self.table, self._sources, self._begin = layer.codes, layer.scales, sources, begin
        self.name = f"{self.table.shard}: {self.table.name}"
        every, self.blocks = _fitting(layer)
        self.rows = every if rows is None else rows
        self._held: tuple[int, int, NDArray[np.uint8]] | None = None

    def scales(self, first: int, last: int) -> NDArray[np.uint8]:
        """As `quant.mx_rows.Rows.scales`; RepairError when they cannot be read.  What was read last is at hand."""
        held = self._held
        if held is None or first < held[0] or held[1] < last:
            held = self._held = first, last, self._read(self.table, self.blocks, first, last)
        return held[2][first - held[0] : last - held[0]]

    def forget(self) -> None:
        """Give back what is at hand."""
        self._held = None

    def packed(self, first: int, last: int) -> NDArray[np.uint8]:
        """As `quant.mx_rows.Rows.packed`; RepairError when they cannot be read."""
        return self._read(self.codes, 16 * self.blocks, first, last)

    def packed_into(self, first: int, last: int, table: NDArray[np.uint8]) -> None:
        """The same into ``table``, uint8 [last - first, 16 * blocks], contiguous."""
        self._sources.read_into(self.codes, self.offset(first), table.reshape(-1).data)

    def place(self, row: int, block: int) -> str:
        """As `quant.mx_rows.Rows.place`."""
        flat = (self._begin + row) * self.blocks + block
        return f"{list(self.table.unravel(flat))} (offset {self.table.start + flat})"

    def offset(self, row: int) -> int:
        """Byte at which the codes of a row begin in the stored tensor."""
        return (self._begin + row) * 16 * self.blocks

    def _read(self, ref: TensorRef, width: int, first: int, last: int) -> NDArray[np.uint8]:
        at, length = (self._begin + first) * width, (last - first) * width
        return read_array(self._sources, ref, at, length).reshape(last - first, width)


def _fitting(layer: QuantizedLayer) -> tuple[int, int]:
    """Rows and blocks in a row of the stored tensor."""
    codes, scales = layer.codes, layer.scales
    nibbles = 2 if codes.dtype == "F4" else 1
    flat = (*scales.shape[:-1], 16 * nibbles * scales.shape[-1]) if scales.shape else ()
    if not scales.shape or codes.shape not in ((*scales.shape, 16), flat):
        shapes = f"shapes {list(codes.shape)} and {list(scales.shape)}"
        raise RepairError(f"{codes.shard}: {codes.name} and {scales.name}: {shapes} are no blocks of 32 codes")
    blocks = scales.shape[-1]
    if not scales.size:
        raise RepairError(f"{codes.shard}: {codes.name}: shape {list(codes.shape)} holds no weights")
    if 16 * blocks > _WIDEST:
        raise RepairError(f"{codes.shard}: {codes.name}: a row of {32 * blocks:,} weights is too wide to be cast")
    return scales.size // blocks, blocks


class SharedPlan:
    """The plan of a fused set, made when it is first asked for, by whatever thread comes first."""

    def __init__(self, parts: Sequence[TensorRows]) -> None:
        """``parts``: the set's tensors in the order of the plan's outcomes."""
        self.parts = tuple(parts)
        self._lock = threading.Lock()
        self._plan: Plan | None = None

    def get(self) -> Plan:
        """The plan; RepairError, naming a tensor, when its global scale is no normal float32."""
        with self._lock:
            if self._plan is None:
                found = plan(self.parts)
                if abs(found.m) > _RANGE:
                    why = "it or its reciprocal leaves the range of normal float32"
                    raise RepairError(f"{self.parts[0].name}: the global scale would be 2^{found.m}: {why}")
                for part in self.parts if len(self.parts) > 1 else ():
                    part.forget()
                self._plan = found
            return self._plan


def consumed(layer: QuantizedLayer) -> frozenset[str]:
    """The source's tensors that a cast layer replaces: all its parts, an activation scale of MXFP4 among them."""
    return frozenset(ref.name for role, ref in layer.parts.items() if role is not Role.OTHER)
