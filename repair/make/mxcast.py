"""MXFP4 weights as NVFP4 in the layout asked for: which tensors come of them, and the tasks that write them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from auditor.declaration import Activation, Algorithm, Family
from auditor.formats.base import GateUp, Role
from auditor.groups import fused_sets
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from quant.mx_plan import Plan, energy
from repair.make.activations import Activations
from repair.make.assemble import Remade
from repair.make.castrow import CastRow, only_energy, row_of
from repair.make.layouts import MODELOPT_3D, NVFP4, Layout, Target
from repair.make.mxpieces import Names, across, apart, in_place
from repair.make.mxrows import SharedPlan, TensorRows, consumed
from repair.make.shard import Copy, Fill, Piece, Task
from repair.make.sources import Sources
from repair.shardheader import Entry

_GATE_UP = "gate_up_proj"


@dataclass(frozen=True)
class Wanted:
    """What MXFP4 weights are to become.  ``tensors``: those of the source, for biases that go along."""

    layout: Layout
    activations: Activations
    sources: Sources
    tensors: Mapping[str, TensorRef]

    @property
    def algorithm(self) -> Algorithm:
        """What is declared for the new weights."""
        static = self.activations.activation is Activation.STATIC
        return Algorithm("NVFP4" if static else "W4A16_NVFP4", Family.NVFP4, self.activations.activation, 16)

    def lone(self, target: Target, module: str) -> tuple[Entry, ...]:
        """The scales of one number that a weight has."""
        roles = [Role.GLOBAL] if self.activations.activation is Activation.NONE else [Role.GLOBAL, Role.INPUT]
        return tuple(target.lone(role, module) for role in roles)


def _numbers(target: Target, module: str, plan: Plan, given: np.float32 | None) -> Iterator[Piece]:
    """What the scales of one number hold; ``given``: the activation scale, None where there is none."""
    value = plan.divisor if target.divides else plan.global_scale
    yield Fill(target.name(Role.GLOBAL, module), 0, value.astype("<f4").tobytes())
    if given is not None:
        yield Fill(target.name(Role.INPUT, module), 0, given.astype("<f4").tobytes())


@dataclass(frozen=True)
class Cast:
    """What becomes of one MXFP4 weight; ``rows``: what there is to say of it, told without writing."""

    remade: Remade
    rows: Callable[[], Iterator[CastRow]]


def cast_layers(layers: Sequence[QuantizedLayer], wanted: Wanted) -> Iterator[Cast]:
    """Every MXFP4 layer, fused sets under one global scale.

    RepairError where shapes do not fit, or the layout has no place for a weight of that rank.
    """
    sets = _sets(layers)
    plans: dict[tuple[str, ...], SharedPlan] = {}
    for layer in layers:
        if layer.format.stemmed:
            yield _experts(layer, wanted)
            continue
        members = sets.get(layer.name, (layer,))
        key = tuple(member.name for member in members)
        if key not in plans:
            plans[key] = SharedPlan([_matrix(member, wanted.sources) for member in members])
        yield _plain(layer, key, plans[key], wanted)


def _sets(layers: Sequence[QuantizedLayer]) -> dict[str, tuple[QuantizedLayer, ...]]:
    """The layers that share a global scale with one, by its name; sets that overlap (q_a/kv, kv/gate) are one."""
    found: dict[str, tuple[QuantizedLayer, ...]] = {}
    for group in fused_sets(layers):
        every = {one.name: one for layer in group.members for one in (*found.get(layer.name, ()), layer)}
        found.update(dict.fromkeys(every, tuple(every.values())))
    return found


def _matrix(layer: QuantizedLayer, sources: Sources) -> TensorRows:
    if len(layer.codes.shape) != 2:
        raise RepairError(f"{layer.codes.shard}: {layer.codes.name}: shape {list(layer.codes.shape)} is no matrix")
    return TensorRows(layer, sources)


def _plain(layer: QuantizedLayer, members: tuple[str, ...], shared: SharedPlan, wanted: Wanted) -> Cast:
    """A matrix: the same shapes, twice as many scales."""
    target, number = NVFP4[wanted.layout], members.index(layer.name)
    rows, module = shared.parts[number], layer.name
    entries = (
        target.codes(module, (rows.rows, 16 * rows.blocks)),
        target.scales(module, (rows.rows, 2 * rows.blocks)),
        *wanted.lone(target, module),
    )

    given = wanted.activations.scale(members, target.divides)

    def row(copied: int = 0) -> CastRow:
        plan = shared.get()
        rows.forget()
        return row_of(layer.codes.name, plan, plan.outcomes[number], copied)

    def task() -> Iterator[Piece]:
        plan = shared.get()
        yield from _numbers(target, module, plan, given)
        copied = 0
        for piece in in_place(rows, plan, wanted.sources, Names(entries[0].name, entries[1].name)):
            copied += piece.length if isinstance(piece, Copy) else 0
            yield piece
        yield row(copied)

    made = Remade(layer.codes.shard, consumed(layer), entries, (task,), (module,), wanted.algorithm)
    return Cast(made, lambda: iter([row()]))


def _experts(layer: QuantizedLayer, wanted: Wanted) -> Cast:
    """Fused experts [E, N, K / 32, 16]."""
    if len(layer.codes.shape) != 4:
        shape = list(layer.codes.shape)
        raise RepairError(f"{layer.codes.shard}: {layer.codes.name}: shape {shape} is not [E, N, K / 32, 16]")
    whole = TensorRows(layer, wanted.sources)
    if wanted.layout is Layout.MODELOPT:
        return _fused(layer, whole, wanted)
    return _split(layer, whole, wanted)


def _fused(layer: QuantizedLayer, whole: TensorRows, wanted: Wanted) -> Cast:
    """modelopt's fused tensor: each expert transposed, one global scale for all."""
    target, name, shared = MODELOPT_3D, layer.name, SharedPlan([whole])
    experts, height = layer.codes.shape[0], layer.codes.shape[1]
    codes = target.codes(name, (experts, 16 * whole.blocks, height))
    scales = target.scales(name, (experts, 2 * whole.blocks, height))
    modules = [module for expert in range(experts) for module in _modules(layer, expert)]
    given = wanted.activations.scale(modules, target.divides)

    def numbers() -> Iterator[Piece]:
        plan = shared.get()
        whole.forget()
        yield from _numbers(target, name, plan, given)
        yield row_of(layer.codes.name, plan, plan.outcomes[0])

    def expert_task(expert: int) -> Task:
        rows = TensorRows(layer, wanted.sources, expert * height, height)
        to = Names(codes.name, scales.name, expert * height * 16 * rows.blocks, expert * height * 2 * rows.blocks)
        return lambda: across(rows, shared.get(), to)

    tasks = (numbers, *map(expert_task, range(experts)))
    entries = (codes, scales, *wanted.lone(target, name))
    made = Remade(layer.codes.shard, consumed(layer), entries, tasks, (name,), wanted.algorithm)
    return Cast(made, lambda: iter([row_of(layer.codes.name, shared.get(), shared.get().outcomes[0])]))


def _modules(layer: QuantizedLayer, expert: int) -> tuple[str, ...]:
    """The modules of one expert, by the names that loaders of unfused experts know."""
    stem = layer.leaf
    leaves = ("gate_proj", "up_proj") if _is_gate_up(layer) else (stem,)
    return tuple(f"{layer.module}.{expert}.{leaf}" for leaf in leaves)


def _is_gate_up(layer: QuantizedLayer) -> bool:
    return layer.format.gate_up is GateUp.INTERLEAVED and layer.leaf == _GATE_UP


def _split(layer: QuantizedLayer, whole: TensorRows, wanted: Wanted) -> Cast:
    """compressed-tensors' modules: every expert apart, gate and up apart, each with its bias."""
    experts, height = layer.codes.shape[0], layer.codes.shape[1]
    if _is_gate_up(layer) and height % 2:
        raise RepairError(f"{layer.codes.shard}: {layer.codes.name}: {height} rows are no pairs of gate and up")
    bias = _bias(layer, wanted.tensors)
    owed = _Owed(experts)
    every = [_Expert(layer, wanted, bias, expert, owed) for expert in range(experts)]
    made = Remade(
        layer.codes.shard,
        consumed(layer) | ({bias.name} if bias else frozenset()),
        tuple(entry for one in every for entry in one.entries(height, whole.blocks)),
        tuple(one.pieces for one in every),
        tuple(module for one in every for module in one.modules),
        wanted.algorithm,
    )
    return Cast(made, lambda: (row for one in every for row in one.rows()))


def _bias(layer: QuantizedLayer, tensors: Mapping[str, TensorRef]) -> TensorRef | None:
    """The fused bias [E, N]; None where there is none."""
    ref = tensors.get(f"{layer.name}_bias")
    if ref is not None and (ref.shape != layer.codes.shape[:2] or ref.nbytes != ref.size * ref.itemsize):
        raise RepairError(f"{ref.shard}: {ref.name}: shape {list(ref.shape)} is not {list(layer.codes.shape[:2])}")
    return ref


class _Owed:
    """Experts of one tensor that are exact, and whose energy is needed after all when another one is not."""

    def __init__(self, experts: int) -> None:
        self._lock = threading.Lock()
        self._left = self._experts = experts
        self._exact: list[TensorRows] = []

    def told(self, rows: TensorRows, exact: bool) -> list[TensorRows]:
        """Note one expert; to the last comes back what is to be measured."""
        with self._lock:
            if exact:
                self._exact.append(rows)
            self._left -= 1
            if self._left:
                return []
            found, self._exact, self._left = self._exact, [], self._experts
            return found if len(found) < self._experts else []


class _Expert:
    """One expert of a fused tensor on its own: its rows, its global scale, its modules."""

    def __init__(self, layer: QuantizedLayer, wanted: Wanted, bias: TensorRef | None, expert: int, owed: _Owed) -> None:
        height = layer.codes.shape[1]
        self._owed = owed
        self._layer, self._wanted, self._bias, self._expert = layer, wanted, bias, expert
        self._rows = TensorRows(layer, wanted.sources, expert * height, height)
        self._shared = SharedPlan([self._rows])
        self._target = NVFP4[wanted.layout]
        self.modules = _modules(layer, expert)
        self._given = wanted.activations.scale(self.modules, self._target.divides)

    def entries(self, height: int, blocks: int) -> Iterator[Entry]:
        each = height // len(self.modules)
        for module in self.modules:
            yield self._target.codes(module, (each, 16 * blocks))
            yield self._target.scales(module, (each, 2 * blocks))
            yield from self._wanted.lone(self._target, module)
            if self._bias is not None:
                yield Entry(f"{module}.bias", self._bias.dtype, (each,))

    def rows(self, copied: int = 0) -> Iterator[CastRow]:
        plan, name = self._shared.get(), self._layer.codes.name
        self._rows.forget()
        made = row_of(name, plan, plan.outcomes[0], copied)
        yield made
        for other in self._owed.told(self._rows, not made.error):
            yield only_energy(name, energy(other))
            other.forget()

    def pieces(self) -> Iterator[Piece]:
        plan, copied = self._shared.get(), 0
        for module in self.modules:
            yield from _numbers(self._target, module, plan, self._given)
        yield from self._biases()
        to = [Names(self._target.name(Role.CODES, m), self._target.name(Role.SCALES, m)) for m in self.modules]
        rows, sources = self._rows, self._wanted.sources
        made = apart(rows, plan, *to) if len(to) == 2 else in_place(rows, plan, sources, to[0])
        for piece in made:
            copied += piece.length if isinstance(piece, Copy) else 0
            yield piece
        yield from self.rows(copied)

    def _biases(self) -> Iterator[Piece]:
        ref, count = self._bias, len(self.modules)
        if ref is None:
            return
        length = ref.shape[1] * ref.itemsize
        raw = self._wanted.sources.read(ref, self._expert * length, length)
        numbers = np.frombuffer(raw, np.uint8).reshape(-1, ref.itemsize)
        for start, module in enumerate(self.modules):
            yield Fill(f"{module}.bias", 0, numbers[start::count].tobytes())
