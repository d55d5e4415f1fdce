"""An unquantised checkpoint to NVFP4 by a recipe: what is to be done, and the job that does it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from auditor.architecture import is_side
from auditor.checkpoint import CONFIG, Checkpoint
from auditor.declaration import Activation, Algorithm, Family
from auditor.dialects import located
from auditor.layer import recognise, split
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make.activations import Activations, NoScales, Ones
from repair.make.assemble import Remade, Wish, assemble, expect_whole, served
from repair.make.experts import Experts
from repair.make.job import Job
from repair.make.layouts import NVFP4, Layout
from repair.make.recipe import Inputs, KvCache, Recipe
from repair.make.requantise_row import Kind, Requantised, kinds, total_of
from repair.make.requantise_task import Making, row_of
from repair.make.requantise_weights import Found, Weight, find
from repair.make.shard import Copy, Fill, Piece, Task
from repair.make.sources import Sources
from repair.restore_pieces import read_array
from repair.shardheader import Entry

_KV_SCALES = ("k_scale", "v_scale")
_ATTENTION = ({"k_proj", "v_proj"}, {"qkv_proj"})
_ONE = {"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f"}


@dataclass(frozen=True)
class Plan:
    """What a recipe does to a checkpoint.

    ``inputs``: input scales to be stored, by module, as the layout has them; ``scales``: where they come from.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorRef]
    recipe: Recipe
    found: Found
    inputs: Mapping[str, np.float32]
    scales: Activations

    @property
    def making(self) -> Making:
        """How each weight is made."""
        return Making(self.recipe.method, self.recipe.layout, self.inputs)

    @property
    def algorithm(self) -> Algorithm:
        """What every quantised module is declared as."""
        static = self.scales.activation is Activation.STATIC
        return Algorithm("NVFP4" if static else "W4A16_NVFP4", Family.NVFP4, self.scales.activation, 16)

    @property
    def kinds(self) -> list[Kind]:
        """Its weights by kind, their errors unknown."""
        return kinds(self._rows())

    @property
    def total(self) -> Kind:
        """All of them."""
        return total_of(self._rows())

    def _rows(self) -> Iterator[Requantised]:
        for members in self.found.sets:
            for weight in members:
                yield row_of(weight, self.recipe.method, self.making.entries(weight), len(members))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader might not expect."""
        return tuple(_notes(self))


def plan(checkpoint: Checkpoint, recipe: Recipe, calibrated: Activations | None = None) -> Plan:
    """What is to be quantised; ``calibrated``: another checkpoint's input scales.

    Without them a recipe that wants them (`Inputs.FROM`) quantises weights only.  RepairError when the checkpoint is
    quantised already or cannot be read whole, as `find` says, and when a module has no input scale there.
    """
    expect_whole(checkpoint)
    _refuse_quantised(checkpoint)
    tensors = served(checkpoint)
    found = find(tensors, checkpoint.config, recipe)
    scales: Activations = Ones() if recipe.activations is Inputs.ONE else NoScales()
    if recipe.activations is Inputs.FROM and calibrated is not None:
        scales = calibrated
    return Plan(checkpoint, tensors, recipe, found, dict(_inputs(found, scales, recipe)), scales)


def _inputs(found: Found, scales: Activations, recipe: Recipe) -> Iterator[tuple[str, np.float32]]:
    """One input scale for the members of a set."""
    for members in found.sets:
        divides = NVFP4[recipe.layout].divides and not members[0].kept
        scale = scales.scale([module for weight in members for module in weight.modules], divides)
        if scale is not None:
            yield from ((weight.name, scale) for weight in members)


def _notes(made: Plan) -> Iterator[str]:
    if made.recipe.activations is Inputs.FROM and isinstance(made.scales, NoScales):
        yield (
            "the recipe quantises inputs, too, and their scales come from running the model, which is not done here:"
            " weights only, declared W4A16_NVFP4; --activations from:DIR takes a calibrated one's scales,"
            " --activations one stores 1.0"
        )
    if made.recipe.kv_cache is KvCache.FP8_CAST:
        stored = made.recipe.layout is Layout.COMPRESSED_TENSORS
        yield "the KV cache is declared FP8 under scale 1.0" + ("" if stored else ": no tensor, servers take 1.0")


def job(wanted: Plan, sources: Sources, others: Sequence[Sources] = ()) -> Job:
    """The job of making it from the checkpoint's files; ``others``: those that the input scales are from.

    RepairError when nothing is to be quantised, or when two tensors would have one name.
    """
    recipe = wanted.recipe
    making = wanted.making
    homes: dict[str, _Home] = defaultdict(_Home)
    for members in wanted.found.sets:
        for home in sorted({weight.ref.shard for weight in members}):
            homes[home].add(members, home, partial(making.pieces, sources, members, home), making)
    for experts in wanted.found.experts:
        bias = wanted.tensors.get(f"{experts.ref.name}_bias")
        if bias is not None:
            homes[bias.shard].add_bias(experts, bias, sources)
    remade = [one.remade(home, wanted.algorithm) for home, one in sorted(homes.items())]
    if recipe.kv_cache is KvCache.FP8_CAST and recipe.layout is Layout.COMPRESSED_TENSORS:
        remade += _kv_scales(wanted.tensors)
    wish = Wish(
        kind="requantize",
        options={**recipe.identity(), "activations": wanted.scales.label},
        layout=recipe.layout,
        row=Requantised,
        kv_fp8=recipe.kv_cache is KvCache.FP8_CAST,
    )
    return assemble(wish, wanted.checkpoint, sources, remade, others)


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    known = recognise(checkpoint.tensors.values())
    refs = [layer.codes for layer in known.layers] + [ref for ref, _ in known.ambiguous] + known.unclaimed + known.kv
    if refs:
        raise RepairError(
            f"{refs[0].shard}: {refs[0].name}: is quantised already ({refs[0].dtype}); a second rounding would add to"
            " the first: take the unquantised model, or `audit cast` for MXFP4"
        )
    for key, _ in located(checkpoint.config or {}):
        raise RepairError(f"{CONFIG}: {key}: declares that the checkpoint is quantised already")


@dataclass
class _Home:
    """What becomes of the weights of one shard."""

    consumed: set[str] = field(default_factory=set)
    entries: list[Entry] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    def add(self, members: tuple[Weight, ...], home: str, task: Task, making: Making) -> None:
        """The members of a set that lie here."""
        for weight in members:
            if weight.ref.shard == home:
                self.consumed.add(weight.ref.name)
                self.entries += making.entries(weight)
                self.modules.append(weight.name)
        self.tasks.append(task)

    def add_bias(self, experts: Experts, bias: TensorRef, sources: Sources) -> None:
        """The bias of a fused weight that becomes a module for each expert, which then has its own."""
        if bias.shape != (experts.count, experts.rows):
            raise RepairError(
                f"{bias.shard}: {bias.name}: {list(bias.shape)} is no bias of {experts.count} x {experts.rows} rows"
            )
        self.consumed.add(bias.name)
        for number in range(experts.count):
            for part, rows in experts.parts.items():
                name = f"{experts.module}.{number}.{part}.bias"
                self.entries.append(Entry(name, bias.dtype, (len(rows),)))
                at = (number * experts.rows + rows.start) * bias.itemsize
                self.tasks.append(partial(_bias, name, sources, bias, at, rows))

    def remade(self, home: str, algorithm: Algorithm) -> Remade:
        """All of it."""
        return Remade(
            home, frozenset(self.consumed), tuple(self.entries), tuple(self.tasks), tuple(self.modules), algorithm
        )


def _bias(name: str, sources: Sources, bias: TensorRef, at: int, rows: range) -> Iterator[Piece]:
    item = bias.itemsize
    if rows.step == 1:
        yield Copy(name, 0, sources, bias, at, len(rows) * item)
        return
    span = read_array(sources, bias, at, ((len(rows) - 1) * rows.step + 1) * item).reshape(-1, item)
    yield Fill(name, 0, span[:: rows.step].tobytes())


def _kv_scales(tensors: Mapping[str, TensorRef]) -> Iterator[Remade]:
    """k_scale and v_scale of 1.0 for every attention of the language model, as llm-compressor names them.

    Servers take 1.0 where they are missing, some with a warning; modelopt's exports have none.
    """
    leaves: dict[str, dict[str, TensorRef]] = defaultdict(dict)
    for name, ref in tensors.items():
        module, leaf = split(name)
        if leaf == "weight":
            leaves[module.rpartition(".")[0]][module.rpartition(".")[2]] = ref
    for parent, children in sorted(leaves.items()):
        own = next((some for some in _ATTENTION if some <= children.keys()), None)
        if own is None or is_side(parent):
            continue
        ref = children[min(own)]
        dtype = ref.dtype if ref.dtype in _ONE else "F32"
        for scale in _KV_SCALES:
            entry = Entry(f"{parent}.{scale}", dtype, (1,))
            yield Remade(ref.shard, frozenset(), (entry,), (partial(_constant, entry.name, _ONE[dtype]),), (), None)


def _constant(name: str, raw: bytes) -> Iterator[Piece]:
    yield Fill(name, 0, raw)
