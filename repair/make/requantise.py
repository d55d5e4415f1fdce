"""An unquantised checkpoint to NVFP4 by a recipe: what is to be done, and the job that does it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
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
from repair.make import requantise_inputs as inputs
from repair.make.assemble import Remade, Wish, assemble, expect_whole, served
from repair.make.experts import Experts
from repair.make.job import Job
from repair.make.layouts import Layout
from repair.make.recipe import Activations, KvCache, Recipe
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

    ``inputs``: input scales to be stored, by module, as the layout has them; ``calibrated``: whose they are.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorRef]
    recipe: Recipe
    found: Found
    inputs: Mapping[str, np.float32] = field(default_factory=dict)
    calibrated: str = ""

    @property
    def making(self) -> Making:
        """How each weight is made."""
        return Making(self.recipe.method, self.recipe.layout, self.inputs)

    @property
    def algorithm(self) -> Algorithm:
        """What every quantised module is declared as."""
        activation = Activation.STATIC if self.inputs else Activation.NONE
        return Algorithm("NVFP4" if self.inputs else "W4A16_NVFP4", Family.NVFP4, activation, 16)

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


def plan(checkpoint: Checkpoint, recipe: Recipe, calibrated: str = "") -> Plan:
    """What is to be quantised; ``calibrated``: the checkpoint that input scales are taken from.

    Without one a recipe that wants it (`Activations.FROM`) quantises weights only.  RepairError when the checkpoint is
    quantised already or cannot be read whole, and as `find` and `inputs.calibrated` say.
    """
    expect_whole(checkpoint)
    _refuse_quantised(checkpoint)
    tensors = served(checkpoint)
    found = find(tensors, checkpoint.config, recipe)
    scales: dict[str, np.float32] = {}
    if recipe.activations is Activations.ONE:
        scales = inputs.ones(found)
    elif recipe.activations is Activations.FROM and calibrated:
        scales = inputs.calibrated(found, calibrated, recipe.layout)
    return Plan(checkpoint, tensors, recipe, found, scales, calibrated)


def _notes(made: Plan) -> Iterator[str]:
    if made.recipe.activations is Activations.FROM and not made.calibrated:
        yield (
            "the recipe quantises inputs, too, and their scales come from running the model, which is not done here:"
            " weights only, declared W4A16_NVFP4; --activations from=CHECKPOINT takes a calibrated one's scales, one"
            " stores 1.0"
        )
    if made.recipe.kv_cache is KvCache.FP8_CAST:
        stored = made.recipe.layout is Layout.COMPRESSED_TENSORS
        yield "the KV cache is declared FP8 under scale 1.0" + ("" if stored else ": no tensor, servers take 1.0")


def job(wanted: Plan, sources: Sources) -> Job:
    """The job of making it from the checkpoint's files.

    RepairError when nothing is to be quantised, or when two tensors would have one name.
    """
    recipe = wanted.recipe
    making = wanted.making
    homes: dict[str, _Home] = defaultdict(_Home)
    for members in wanted.found.sets:
        for home in sorted({weight.ref.shard for weight in members}):
            homes[home].add(members, home, partial(making.pieces, sources, members, home), making)
    for experts in wanted.found.experts:
        homes[experts.ref.shard].add_bias(experts, wanted.tensors, sources)
    remade = [one.remade(home, wanted.algorithm) for home, one in sorted(homes.items())]
    if recipe.kv_cache is KvCache.FP8_CAST and recipe.layout is Layout.COMPRESSED_TENSORS:
        remade += _kv_scales(wanted.tensors)
    wish = Wish(
        kind="requantize",
        options={**recipe.identity(), "calibrated": wanted.calibrated, "inputs": _digest(wanted.inputs)},
        layout=recipe.layout,
        row=Requantised,
        kv_fp8=recipe.kv_cache is KvCache.FP8_CAST,
    )
    return assemble(wish, wanted.checkpoint, sources, remade)


def _digest(scales: Mapping[str, np.float32]) -> str:
    held = hashlib.blake2b(digest_size=16)
    for name, value in sorted(scales.items()):
        held.update(f"{name} {float(value)!r}\n".encode())
    return held.hexdigest()


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

    def add_bias(self, experts: Experts, tensors: Mapping[str, TensorRef], sources: Sources) -> None:
        """The bias of a fused weight that becomes a module for each expert, which then has its own."""
        bias = tensors.get(f"{experts.ref.name}_bias")
        if bias is None:
            return
        if bias.shape != (experts.count, experts.rows) or bias.shard != experts.ref.shard:
            raise RepairError(
                f"{bias.shard}: {bias.name}: {list(bias.shape)} is not the bias of {experts.ref.name}"
                f" in {experts.ref.shard}, {experts.count} x {experts.rows}"
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
