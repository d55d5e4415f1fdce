"""The unquantised checkpoint: the weights that a quantised layer was made from, read in chunks of rows.

Weights come as they are stored (float32, float16, or bfloat16 as uint16 words: widening loses nothing, and some
exporters round in the weight's own precision), always as [rows, K] of the layer.  A source that is itself quantised
(FP8, MXFP4) is read as float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from auditor.checkpoint import Checkpoint, open_settled
from auditor.formats.base import GateUp
from auditor.layer import QuantizedLayer, Recognised, recognise
from auditor.tensorref import TensorRef
from quant.errors import NumericError, RepairError
from quant.floats import Floats, Word, largest, widen, words
from repair.names import Names
from repair.names_matrix import Matrix, Region
from repair.names_tables import INTERLEAVED
from repair.restore_observers import declared
from repair.restore_pieces import Files
from repair.source_codes import WORDS, Lines, grid, native, read_lines, step_rows, stored_rows

CHUNK = 1 << 21  # weights per chunk: 4 to 8 MB


class Chunk(NamedTuple):
    """Source weights of rows ``first`` ... of an expert: any float dtype, [rows, K]."""

    expert: int
    first: int
    weights: Floats


class Source:
    """An unquantised checkpoint, seen through the names of the quantised one."""

    def __init__(self, path: str | Path, checkpoint: Checkpoint, recognised: Recognised) -> None:
        """Read the source's headers; ``checkpoint`` and ``recognised`` are the quantised side.

        Raises CheckpointError when there is nothing to read.
        """
        self.checkpoint = open_settled(path)
        self.observers = declared(checkpoint.config)
        self.files = Files(self.checkpoint)
        found = self.recognised = recognise(self.checkpoint.tensors.values())
        self._plain = {ref.name: ref for ref in self.checkpoint.tensors.values()}
        ours: dict[str, QuantizedLayer | None] = {layer.name: layer for layer in recognised.layers}
        heights = {layer.name: grid(layer).rows for layer in recognised.layers if len(layer.codes.shape) >= 2}
        for ref in recognised.plain:
            ours.setdefault(ref.name.removesuffix(".weight"), None)
            if len(ref.shape) == 2:
                heights.setdefault(ref.name.removesuffix(".weight"), ref.shape[0])
        matrices = {m.name: m for m in (*_quantised(found.layers), *_floats(found.plain))}
        kinds = {_model_type(c) for c in (self.checkpoint, checkpoint)}
        layouts = {layer.format.gate_up for layer in (*found.layers, *recognised.layers)}
        self.names = Names(ours, matrices, heights, bool(kinds & INTERLEAVED) or GateUp.INTERLEAVED in layouts)
        self._regions: dict[str, tuple[Region, ...]] = {}
        self._amax: dict[str, np.float32] = {}

    def regions(self, layer: QuantizedLayer) -> tuple[Region, ...]:
        """Where the layer's rows come from; RepairError when the source does not have them."""
        found = self._regions.get(layer.name)
        if found is None:
            found = self._regions[layer.name] = self.names.regions(layer)
        return found

    def word(self, layer: QuantizedLayer) -> Word:
        """The precision the source keeps the layer in."""
        kinds = {WORDS.get(region.matrix.ref.dtype, Word.FLOAT32) for region in self.regions(layer)}
        return kinds.pop() if len(kinds) == 1 else Word.FLOAT32

    def rows(self, layer: QuantizedLayer, expert: int, first: int, last: int) -> Floats:
        """Source weights of rows ``first`` to ``last`` of an expert, [rows, K], any float dtype.

        Raises RepairError when the source has no such tensor or holds NaN or infinity there.
        """
        parts: list[tuple[range, Floats]] = []
        for region in self.regions(layer):
            if region.expert != expert:
                continue
            low, high = _overlap(region.into, first, last)
            if low < high:
                into = region.into[low:high]
                parts.append((into, self._read(region, region.rows[low:high])))
        return _joined(parts, first, last, grid(layer).columns, layer)

    def chunks(self, layer: QuantizedLayer, size: int = CHUNK) -> Iterator[Chunk]:
        """All source weights of a layer in order, about ``size`` at a time; chunks begin at block rows."""
        shape, high = grid(layer), step_rows(layer)
        take = max(high, size // max(shape.columns, 1) // high * high)
        for expert in range(shape.experts):
            for first in range(0, shape.rows, take):
                last = min(first + take, shape.rows)
                yield Chunk(expert, first, self.rows(layer, expert, first, last))

    def amax(self, layers: Iterable[QuantizedLayer]) -> np.float32:
        """The largest magnitude of all these layers' source weights; RepairError on NaN or infinity."""
        return max((self._amax_of(layer) for layer in layers), default=np.float32(0))

    def _amax_of(self, layer: QuantizedLayer) -> np.float32:
        known = self._amax.get(layer.name)
        if known is None:
            known = np.float32(0)
            for chunk in self.chunks(layer):
                known = max(known, finite_amax(chunk, layer))
            self._amax[layer.name] = known
        return known

    def tensor(self, ref: TensorRef) -> TensorRef:
        """The source's tensor for one that was not quantised (a norm, an embedding), found as weights are.

        Raises RepairError when there is none of this shape and of a float dtype.
        """
        module = ref.name.removesuffix(".weight")
        try:
            same = self.names.find(module, lambda m: m.shape == ref.shape and m.layer is None, str(list(ref.shape)))
        except RepairError as error:
            raise RepairError(f"{ref.name}: {error}") from None
        if same is None or same.ref.dtype not in WORDS:
            raise RepairError(f"{ref.name}: the source has no float tensor of this name and shape {list(ref.shape)}")
        return same.ref

    def close(self) -> None:
        """Close the source's files."""
        self.files.close()

    def __enter__(self) -> Self:
        """The source itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the source's files."""
        self.close()

    def _read(self, region: Region, rows: range) -> Floats:
        """These rows of a region's slab, [rows, K]."""
        low, high = rows[0], rows[-1] + 1
        matrix = region.matrix
        if matrix.layer is not None:
            step = step_rows(matrix.layer)
            begin = low // step * step
            end = min(-(-high // step) * step, grid(matrix.layer).rows)
            whole: Floats = stored_rows(matrix.layer, self.files, region.slab, begin, end).weights()
            return whole[low - begin : high - begin : rows.step]
        height, width = matrix.shape[-2:] if not region.transposed else matrix.shape[:-3:-1]
        lines = Lines(matrix.ref, height, width, region.transposed)
        span = native(read_lines(self.files, lines, region.slab, low, high), matrix.ref)
        return span[:: rows.step]


def finite_amax(chunk: Chunk, layer: QuantizedLayer) -> np.float32:
    """The largest magnitude of a chunk; RepairError, naming the layer and the place, on NaN or infinity."""
    try:
        return largest(chunk.weights, "source weight")
    except NumericError as error:
        where = f"expert {chunk.expert}, rows from {chunk.first}"
        raise RepairError(f"{layer.codes.name}: the source cannot be used: {where}: {error}") from None


def _overlap(into: range, first: int, last: int) -> tuple[int, int]:
    """Indices of ``into`` (a step of at least 1) whose values lie in first ... last."""
    low = max(0, -(-(first - into.start) // into.step))
    high = min(len(into), -(-(last - into.start) // into.step))
    return low, high


def _joined(parts: list[tuple[range, Floats]], first: int, last: int, columns: int, layer: QuantizedLayer) -> Floats:
    if sum(len(into) for into, _ in parts) != last - first:
        raise RepairError(f"{layer.codes.name}: rows {first}..{last} are not all in the source")
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0][1])
    if len({words(w)[0] for _, w in parts}) > 1:
        parts = [(into, widen(w)) for into, w in parts]
    out = np.empty((last - first, columns), parts[0][1].dtype)
    for into, w in parts:
        out[into.start - first : into.stop - first : into.step] = w
    return out


def _floats(plain: Iterable[TensorRef]) -> Iterator[Matrix]:
    for ref in plain:
        if ref.dtype in WORDS:
            yield Matrix(ref.name.removesuffix(".weight"), ref, ref.shape)


def _quantised(layers: Iterable[QuantizedLayer]) -> Iterator[Matrix]:
    for layer in layers:
        if layer.format.scheme is None or len(layer.codes.shape) < 2:
            continue
        shape = grid(layer)
        flat = len(layer.codes.shape) == 2 and layer.format.axis == -1
        yield Matrix(layer.name, layer.codes, shape[1:] if flat else tuple(shape), layer)


def _model_type(checkpoint: Checkpoint) -> str:
    config = checkpoint.config or {}
    text = config.get("text_config")
    nested = text.get("model_type") if isinstance(text, dict) else None
    return str(nested or config.get("model_type") or "")
