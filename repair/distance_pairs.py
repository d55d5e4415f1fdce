"""Which weights of two checkpoints belong together: for each of B, the rows of A that it stands for.

Names are matched as a repair matches a layer with its source (`repair.names`): renamed prefixes, fused and single
projections, experts apart or in one tensor, gate and up rows alternating or not.  What has no counterpart, or cannot
be turned into numbers, is listed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

from auditor.checkpoint import Checkpoint, open_settled
from auditor.declared import read_declared
from auditor.formats.base import Format, Role
from auditor.formats.swapped import MARKERS
from auditor.layer import QuantizedLayer, Recognised, recognise
from auditor.tensorref import FLOAT_DTYPES, FP8_DTYPES, TensorRef
from quant.errors import CheckpointError, RepairError
from repair.distance_floats import FloatNames
from repair.names_matrix import Matrix, Region
from repair.source import Source
from repair.source_codes import WORDS, Grid, grid, scheme
from repair.wording import plural

MAX_COLUMNS = 1 << 24  # of a row of codes, which is read whole
Side = Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A weight of B and where its rows are in A; together the regions cover every row of every expert once.

    ``layer`` is None for a float tensor; ``flat``: two float tensors of one shape, compared element by element.
    ``block``: rows and columns that share a scale of B, one row where the whole tensor or row does.
    """

    ref: TensorRef
    layer: QuantizedLayer | None
    shape: Grid
    regions: tuple[Region, ...]
    block: tuple[int, int]
    transposed: bool = False
    flat: bool = False


class Unmatched(NamedTuple):
    """A tensor or file of one side that was not compared, and why."""

    side: Side
    tensor: str
    reason: str


@dataclass
class Pairing:
    """What will be compared and what will not."""

    a: Checkpoint
    b: Checkpoint
    pairs: list[Pair] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)
    unread: list[Unmatched] = field(default_factory=list)  # files and tensors that are damaged or missing
    ignored: Counter[str] = field(default_factory=Counter)  # what holds no weights -> tensors of both sides


def pair_up(a: str, b: str) -> Pairing:
    """Match the weights of B with those of the reference A.  Only headers and configurations are read.

    Raises CheckpointError when either side is no checkpoint at all.
    """
    theirs = open_settled(b)
    recognised = recognise(theirs.tensors.values())
    try:
        source = Source(a, theirs, recognised)
    except RepairError as error:
        raise CheckpointError(str(error)) from None
    with source:
        return _Matching(source, theirs, recognised).run()


class _Matching:
    """The work of `pair_up`."""

    def __init__(self, source: Source, theirs: Checkpoint, recognised: Recognised) -> None:
        self.source = source
        self.recognised = recognised
        self.floats = FloatNames(source, recognised)
        self.found = Pairing(source.checkpoint, theirs)
        self.used: Counter[str] = Counter()  # tensor of A -> rows that B has
        self.layers = {layer.name: layer for layer in source.recognised.layers}  # of A
        self.whole: dict[str, int] = {}  # tensor of A -> rows in all
        self.refused = {"A": _Refusals(source.checkpoint), "B": _Refusals(theirs)}

    def run(self) -> Pairing:
        """Match everything; B's tensors in the order of its layers, then of its plain tensors."""
        self._damage("A", self.found.a)
        self._damage("B", self.found.b)
        for layer in self.recognised.layers:
            self._try(layer.codes, layer.name, partial(self._layer, layer))
        for ref in self.recognised.plain:
            if ref.dtype not in FLOAT_DTYPES:
                self.found.ignored["buffers"] += 1
            else:
                self._try(ref, ref.name.removesuffix(".weight"), partial(self._float, ref))
        self._rest()
        self._unexplained("A", self.source.recognised)
        self._unexplained("B", self.recognised)
        return self.found

    def _try(self, ref: TensorRef, name: str, match: Callable[[], Pair]) -> None:
        try:
            pair = match()
        except RepairError as error:
            reason = self._excuse(name) or str(error).removeprefix(f"{ref.name}: ")
            self.found.unmatched.append(Unmatched("B", ref.name, reason))
            return
        self.found.pairs.append(pair)
        for region in pair.regions:
            self.used[region.matrix.ref.name] += len(region.rows)
            self.whole[region.matrix.ref.name] = _rows(region)

    def _excuse(self, name: str) -> str:
        """A's tensor of the same name need not be listed as well; why it cannot be read, if that is the reason."""
        layer, matrix = self.layers.get(name), self.source.names.matrices.get(name)
        if layer is not None:
            self.used[layer.codes.name] += 1
            try:
                self.refused["A"].check(layer)
            except RepairError as error:
                return f"the source's {layer.codes.name}: {error}"
        elif matrix is not None:
            self.used[matrix.ref.name] += 1
        return ""

    def _layer(self, layer: QuantizedLayer) -> Pair:
        self.refused["B"].check(layer)
        shape, block = grid(layer), scheme(layer).block
        regions = self.source.regions(layer)
        self._check_source(regions)
        high, wide = (1, block[0]) if len(block) == 1 else block
        return Pair(layer.codes, layer, shape, regions, (high or 1, wide or shape.columns))

    def _float(self, ref: TensorRef) -> Pair:
        if ref.dtype not in WORDS:
            raise RepairError(f"dtype {ref.dtype} is not compared")
        if not ref.size:
            raise RepairError("holds no elements")
        try:
            same = self.source.tensor(ref)
        except RepairError as error:
            shape, regions, transposed = self.floats.regions(ref, error)
            self._check_source(regions)
            return Pair(ref, None, shape, regions, (1, shape.columns), transposed)
        columns = ref.shape[-1] if ref.shape else 1
        shape = Grid(1, ref.size // columns, columns)
        rows = range(shape.rows)
        region = Region(Matrix(same.name, same, (shape.rows, columns)), 0, False, rows, 0, rows)
        return Pair(ref, None, shape, (region,), (1, columns), flat=True)

    def _check_source(self, regions: tuple[Region, ...]) -> None:
        for matrix in {region.matrix.name: region.matrix for region in regions}.values():
            if matrix.layer is not None:
                try:
                    self.refused["A"].check(matrix.layer)
                    scheme(matrix.layer)
                except RepairError as error:
                    raise RepairError(f"the source's {matrix.ref.name}: {error}") from None

    def _rest(self) -> None:
        """What of A nothing of B stands for."""
        known = self.source.recognised
        floats = [ref for ref in known.plain if ref.dtype in FLOAT_DTYPES]
        for ref in (*(layer.codes for layer in known.layers), *floats):
            used, whole = self.used[ref.name], self.whole.get(ref.name, 0)
            if not used:
                self.found.unmatched.append(Unmatched("A", ref.name, "B has nothing that stands for it"))
            elif used < whole:
                self.found.unmatched.append(Unmatched("A", ref.name, f"B has only {used} of its {whole} rows"))
        self.found.ignored["buffers"] += len(known.plain) - len(floats)

    def _unexplained(self, side: Side, known: Recognised) -> None:
        for ref, formats in known.ambiguous:
            reason = f"several layouts claim it: {', '.join(formats)}"
            self.found.unmatched.append(Unmatched(side, ref.name, reason))
        for ref in known.unclaimed:
            self.found.unmatched.append(Unmatched(side, ref.name, f"no layout explains this {ref.dtype} tensor"))
        self.found.ignored["KV-cache scales"] += len(known.kv)
        for _, role in known.roles.values():
            if role in (Role.INPUT, Role.OUTPUT):
                self.found.ignored["activation scales"] += 1

    def _damage(self, side: Side, checkpoint: Checkpoint) -> None:
        said = self.found.unread
        said += [Unmatched(side, name, reason) for name, reason in sorted(checkpoint.unopened.items())]
        for name, count in sorted(checkpoint.missing.items()):
            said.append(Unmatched(side, name, f"the shard is missing ({plural(count, 'tensor')})"))
        for name, shard in checkpoint.shards.items():
            if shard.header.refused:
                said.append(Unmatched(side, name, "its header is damaged"))
            said += [Unmatched(side, tensor, f"{name}: its entry is damaged") for tensor in shard.header.unreadable]


def _rows(region: Region) -> int:
    """Rows of all slabs of a region's matrix."""
    shape = region.matrix.shape
    return (shape[0] if len(shape) == 3 else 1) * (shape[-1] if region.transposed else shape[-2])


class _Refusals:
    """Layers of a checkpoint whose weights its tensors do not give."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._declared = read_declared(checkpoint)

    def check(self, layer: QuantizedLayer) -> None:
        """RepairError with the reason when the layer cannot be turned into weights."""
        reason = self._reason(layer)
        if reason:
            raise RepairError(reason)

    def _reason(self, layer: QuantizedLayer) -> str:
        held: Format = layer.format
        if held.scheme is None:
            return f"layout {held.name} holds integers: not compared"
        if layer.get(Role.LORA_A) is not None or layer.get(Role.LORA_B) is not None:
            return "SVDQuant: its low-rank branch is not added: not compared"
        if layer.codes.dtype in FP8_DTYPES and layer.codes.dtype != "F8_E4M3":
            return f"codes of dtype {layer.codes.dtype} are not read"
        if MARKERS & layer.leaves.keys():
            return "an image-model tool packed it in its own order: not compared"
        if grid(layer).columns > MAX_COLUMNS:
            return f"rows of {grid(layer).columns} weights are not read"
        gain = layer.get(Role.PRE_QUANT)
        if gain is not None and (gain.size != grid(layer).columns or gain.dtype not in WORDS):
            return f"{gain.name}: {gain.size} numbers of {gain.dtype} for {grid(layer).columns} columns"
        if gain is None and held.is_fp4():
            algorithm = self._declared.algo_for(layer.module)
            if algorithm is not None and ("AWQ" in algorithm.name or "SVD" in algorithm.name):
                return f"{algorithm.name}: its pre_quant_scale was folded into the layer before it: not compared"
        return ""
