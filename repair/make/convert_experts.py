"""modelopt's fused experts as compressed-tensors' loaders know them: each expert apart, gate and up apart.

The fused tensors lie transposed, [E, K / 2, N] or [E, K, N]; gpt-oss interleaves the rows of gate and up, Llama 4 lays
one behind the other.  A global scale of all experts is that of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditor.architecture import expert_leaves, model_types
from auditor.declaration import Activation, Algorithm, Family
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from quant.reciprocal import agreement, inverts, scale_counts
from repair.make.assemble import Remade
from repair.make.convert_nvfp4 import algorithm
from repair.make.convert_scalars import activation, consumed, le_bytes, number, stored_input, turned
from repair.make.convertrow import Converted, ConvertRow, Into
from repair.make.experts import DOWN, GATE_UP, HALVES
from repair.make.layouts import FP8, NVFP4, Layout, Target
from repair.make.shard import Fill, Piece, Task
from repair.names_tables import INTERLEAVED
from repair.shardheader import Entry
from repair.source_codes import code_lines, grid, read_lines, scale_lines, scheme

FORMATS = frozenset({"modelopt-3d", "modelopt-3d-fp8"})
Table = NDArray[np.uint8]


def convert(layer: QuantizedLayer, into: Into) -> Converted:
    """A fused weight, expert by expert; RepairError where its shapes do not fit or its parts are not known."""
    static = activation(layer, into) is not Activation.NONE
    fp8 = not layer.format.packed
    told = Algorithm("FP8", Family.FP8, activation(layer, into)) if fp8 else algorithm(static)
    if into.layout is Layout.MODELOPT:
        return Converted(Remade(layer.codes.shard, frozenset(), (), (), (layer.name,), told), lambda: iter([]))
    fused = _Fused(layer, into, static)
    bias = fused.bias
    made = Remade(
        layer.codes.shard,
        consumed(layer) | ({bias.name} if bias else set()),
        tuple(entry for expert in range(fused.count) for entry in fused.entries(expert)),
        tuple(_task(fused, expert) for expert in range(fused.count)),
        tuple(module for expert in range(fused.count) for module in fused.modules(expert)),
        told,
    )
    return Converted(made, lambda: (fused.row(expert) for expert in range(fused.count)))


def _task(fused: _Fused, expert: int) -> Task:
    return lambda: fused.pieces(expert)


@dataclass(frozen=True)
class _Numbers:
    """The lone numbers of an expert: as stored, as they will be."""

    old: np.float32
    new: dict[Role, np.float32]


class _Fused:
    """One fused weight, seen as its experts."""

    def __init__(self, layer: QuantizedLayer, into: Into, static: bool) -> None:
        self._layer, self._into = layer, into
        self._nvfp4 = layer.format.packed
        self._target: Target = (NVFP4 if self._nvfp4 else FP8)[Layout.COMPRESSED_TENSORS]
        self._shape, self.count = grid(layer), grid(layer).experts
        scheme(layer)  # shapes fit together
        self._cuts = self._halves()
        self._input, self._dropped = stored_input(layer, static)
        self.bias = self._bias()

    def _halves(self) -> dict[str, slice]:
        rows, layer, kinds = self._shape.rows, self._layer, model_types(self._into.config)
        where = f"{layer.codes.shard}: {layer.codes.name}"
        known = expert_leaves(kinds)
        if layer.leaf not in (GATE_UP, DOWN):
            raise RepairError(f"{where}: a fused weight that is neither {GATE_UP} nor {DOWN}")
        if known is not None and DOWN not in known[1]:
            raise RepairError(f"{where}: loaders of {known[0]} know its experts by other names than gate, up and down")
        if layer.leaf == DOWN:
            return {DOWN: slice(None)}
        if rows % 2:
            raise RepairError(f"{where}: {rows} rows are no pairs of gate and up")
        if set(kinds) & INTERLEAVED:
            return {HALVES[0]: slice(0, None, 2), HALVES[1]: slice(1, None, 2)}
        return {HALVES[0]: slice(rows // 2), HALVES[1]: slice(rows // 2, None)}

    def _bias(self) -> TensorRef | None:
        ref = self._into.tensors.get(f"{self._layer.name}_bias")
        if ref is not None and ref.shape != (self.count, self._shape.rows):
            due = [self.count, self._shape.rows]
            raise RepairError(f"{ref.shard}: {ref.name}: shape {list(ref.shape)} is not {due}")
        return ref

    def modules(self, expert: int) -> list[str]:
        return [f"{self._layer.module}.{expert}.{leaf}" for leaf in self._cuts]

    def entries(self, expert: int) -> Iterator[Entry]:
        rows, columns = self._shape.rows // len(self._cuts), self._shape.columns
        for module in self.modules(expert):
            yield self._target.codes(module, (rows, columns // 2 if self._nvfp4 else columns))
            if self._nvfp4:
                yield self._target.scales(module, (rows, columns // 16))
            for role in self._roles():
                yield self._target.lone(role, module)
            if self.bias is not None:
                yield Entry(f"{module}.bias", self.bias.dtype, (rows,))

    def _roles(self) -> list[Role]:
        return [Role.GLOBAL if self._nvfp4 else Role.SCALES, *([Role.INPUT] if self._input is not None else [])]

    def _numbers(self, expert: int) -> _Numbers:
        """Globals are turned, FP8 scales stay."""
        new: dict[Role, np.float32] = {}
        for role in self._roles():
            ref = self._layer.parts[role]
            value = number(self._into.sources, ref, expert, self.count)
            new[role] = turned(value, ref) if self._nvfp4 else value
        first = self._layer.parts[self._roles()[0]]
        return _Numbers(number(self._into.sources, first, expert, self.count), new)

    def _scales(self, expert: int) -> Table | None:
        lines = scale_lines(self._layer)
        return None if lines is None else read_lines(self._into.sources, lines, expert, 0, lines.rows)

    def row(self, expert: int, scales: Table | None = None) -> ConvertRow:
        name = f"{self._layer.codes.name}[{expert}]"
        if not self._nvfp4:
            return ConvertRow(name, 1, 1, dropped=self._dropped)
        numbers = self._numbers(expert)
        table = self._scales(expert) if scales is None else scales
        counts = scale_counts(table if table is not None else np.zeros(0, np.uint8))
        old, new = numbers.old, numbers.new[Role.GLOBAL]
        exact, ulps, deviation = agreement(old, new).over(counts)
        return ConvertRow(name, int(counts.sum()), exact, ulps, deviation, inverts(old, new), self._dropped)

    def pieces(self, expert: int) -> Iterator[Piece]:
        """One expert in memory at a time."""
        sources, target, numbers = self._into.sources, self._target, self._numbers(expert)
        codes = read_lines(sources, code_lines(self._layer), expert, 0, self._shape.rows)
        scales = self._scales(expert)
        bias = self._bias_of(expert)
        for module, cut in zip(self.modules(expert), self._cuts.values(), strict=True):
            yield Fill(target.name(Role.CODES, module), 0, _flat(codes[cut]))
            if self._nvfp4 and scales is not None:
                yield Fill(target.name(Role.SCALES, module), 0, _flat(scales[cut]))
            for role, value in numbers.new.items():
                yield Fill(target.name(role, module), 0, le_bytes(value))
            if bias is not None:
                yield Fill(f"{module}.bias", 0, _flat(bias[cut]))
        yield self.row(expert, scales)

    def _bias_of(self, expert: int) -> Table | None:
        ref = self.bias
        if ref is None:
            return None
        length = self._shape.rows * ref.itemsize
        raw = self._into.sources.read(ref, expert * length, length)
        return np.frombuffer(raw, np.uint8).reshape(self._shape.rows, ref.itemsize)


def _flat(table: Table) -> memoryview:
    return np.ascontiguousarray(table).reshape(-1).data
