"""The weights of an unquantised checkpoint that a recipe quantises, and why the others stay as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from auditor.architecture import EMBEDDINGS, generalised, hidden_layers, is_side, model_types
from auditor.groups import expert_key, fused_names
from auditor.jsonfile import Json
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.errors import RepairError
from repair.make.experts import DOWN, HALVES, KEPT_FUSED, Experts, expect_split, fused_experts, is_fused
from repair.make.layouts import Layout
from repair.make.recipe import Ragged, Recipe
from repair.source_codes import WORDS

BLOCK = 16
_NO_LINEAR = EMBEDDINGS | {"wpe", "position_embeddings", "relative_attention_bias"}
_TURNED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})  # their Linear is stored [in, out]


@dataclass(frozen=True)
class Weight:
    """One weight to be quantised, as a server knows it: rows of slabs of a source tensor.

    ``rows``: of each slab, which has ``height`` of them, of ``columns`` inputs; ``across``: stored [columns, height].
    ``kept``: stays one fused 3-D tensor; all others have one slab and become a matrix.
    """

    name: str
    ref: TensorRef
    slabs: range
    rows: range
    height: int
    columns: int
    across: bool = False
    kept: bool = False

    @property
    def modules(self) -> list[str]:
        """The modules that it is, or that a fused tensor stands for."""
        if not self.kept:
            return [self.name]
        head, _, leaf = self.name.rpartition(".")
        parts = [leaf] if leaf == DOWN else HALVES
        return [f"{head}.{number}.{part}" for number in self.slabs for part in parts]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return len(self.slabs) * len(self.rows) * self.columns

    @property
    def home(self) -> str:
        """The experts module that it belongs to, or its own name: what is quantised wholly or not at all."""
        key = expert_key(self.name)
        return key[0] if key else self.name.rpartition(".")[0] if self.kept else self.name


@dataclass(frozen=True)
class Left:
    """A matrix that stays as it is, and why."""

    tensor: str
    reason: str

    @property
    def kind(self) -> str:
        """The name with stars for layer and expert numbers."""
        return generalised(self.tensor)


@dataclass
class Found:
    """``sets``: weights that share one amax, together; ``experts``: fused tensors that become a module per expert."""

    sets: list[tuple[Weight, ...]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    experts: list[Experts] = field(default_factory=list)

    @property
    def weights(self) -> Iterator[Weight]:
        """All of them, set by set."""
        return (weight for members in self.sets for weight in members)


def find(tensors: Mapping[str, TensorRef], config: Json | None, recipe: Recipe) -> Found:
    """What a recipe selects, every expert of a layer or none, every member of a fused set or none.

    RepairError, naming tensors, when it selects only a part of those, when an expert is missing, when a fused 3-D
    tensor is not understood, and on a ragged matrix where the recipe refuses one.
    """
    found = Found()
    chosen: dict[str, Weight] = {}
    others: dict[str, str] = {}  # modules that are not chosen -> their tensor
    for ref in sorted(tensors.values()):
        if not (is_fused(ref) or _is_matrix(ref)):
            continue
        if reason := _reason(ref, config, recipe):
            found.left.append(Left(ref.name, reason))
            others.update(dict.fromkeys(_modules(ref, tensors, config, recipe.layout), ref.name))
            continue
        experts = fused_experts(ref, tensors, config) if is_fused(ref) else None
        weights = list(_weights(ref, experts, config, recipe.layout))
        chosen.update((weight.name, weight) for weight in weights)
        if experts is not None and not weights[0].kept:
            found.experts.append(experts)
    _expect_whole_sets(chosen, others)
    _expect_all_experts(chosen, others)
    _leave_ragged(chosen, recipe, found)
    found.experts = [e for e in found.experts if not any(left.tensor == e.ref.name for left in found.left)]
    found.sets = _sets(chosen)
    return found


def _is_matrix(ref: TensorRef) -> bool:
    return len(ref.shape) == 2 and ref.name.endswith(".weight") and ref.dtype in FLOAT_DTYPES


def _reason(ref: TensorRef, config: Json | None, recipe: Recipe) -> str:
    """Why a tensor is not quantised; empty when it is."""
    module = ref.name.removesuffix(".weight")
    leaf = module.rpartition(".")[2]
    if not is_fused(ref) and (leaf in _NO_LINEAR or "embed" in leaf or leaf.endswith("norm")):
        return "no linear"
    if reason := recipe.why_not(ref.name):
        return reason
    layers = hidden_layers(config)
    if recipe.disabled and layers is not None and is_side(module, layers) and not is_side(module):
        return f"excluded: beyond the {layers} layers, an MTP layer"
    if ref.dtype not in WORDS:
        return f"{ref.dtype} weights are not quantised"
    if not ref.size:
        return "holds no weights"
    if set(model_types(config)) & _TURNED:
        return "stored [in, out], as no loader of NVFP4 reads it"
    return ""


def _modules(ref: TensorRef, tensors: Mapping[str, TensorRef], config: Json | None, layout: Layout) -> list[str]:
    """The module names that a tensor which stays would have had."""
    if not is_fused(ref):
        return [ref.name.removesuffix(".weight")]
    try:
        return [weight.name for weight in _weights(ref, fused_experts(ref, tensors, config), config, layout)]
    except RepairError:
        return []


def _weights(ref: TensorRef, experts: Experts | None, config: Json | None, layout: Layout) -> Iterator[Weight]:
    if experts is None:
        high, columns = ref.shape
        yield Weight(ref.name.removesuffix(".weight"), ref, range(1), range(high), high, columns)
        return
    high, columns = experts.rows, experts.columns
    if layout is Layout.MODELOPT and experts.across and set(model_types(config)) & KEPT_FUSED:
        yield Weight(ref.name, ref, range(experts.count), range(high), high, columns, across=True, kept=True)
        return
    expect_split(experts, config)
    for number in range(experts.count):
        for part, rows in experts.parts.items():
            name = f"{experts.module}.{number}.{part}"
            yield Weight(name, ref, range(number, number + 1), rows, high, columns, experts.across)


def _expect_whole_sets(chosen: Mapping[str, Weight], others: Mapping[str, str]) -> None:
    for parent, leaves in fused_names([*chosen, *others]):
        names = [f"{parent}.{leaf}" if parent else leaf for leaf in leaves]
        absent = [name for name in names if name not in chosen]
        if absent and len(absent) < len(names):
            there = next(name for name in names if name in chosen)
            raise RepairError(
                f"{others.get(absent[0], absent[0])}: is not selected, but {there} is: a server fuses them,"
                " and they must be quantised together"
            )


def _expect_all_experts(chosen: Mapping[str, Weight], others: Mapping[str, str]) -> None:
    """Every expert of a module that has a chosen one: the same projections, the numbers without a gap."""
    numbers: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name in chosen:
        if key := expert_key(name):
            numbers[key[0]][key[1]].add(int(name[len(key[0]) + 1 :].partition(".")[0]))
    homes = {weight.home for weight in chosen.values() if weight.home != weight.name}
    for name, tensor in others.items():
        key = expert_key(name)
        home = key[0] if key else name.rpartition(".")[0] if name == tensor else ""
        if home in homes:
            raise RepairError(f"{tensor}: is not selected, but other weights of {home} are: a server wants them alike")
    for module, projections in numbers.items():
        every = set().union(*projections.values())
        for projection, found in sorted(projections.items()):
            missing = (set(range(max(every) + 1)) if max(every) < 1 << 20 else every) - found
            if missing or max(every) >= 1 << 20:
                number = min(missing, default=max(every))
                raise RepairError(f"{module}.{number}.{projection}: is not there, though other experts have it")


def _leave_ragged(chosen: dict[str, Weight], recipe: Recipe, found: Found) -> None:
    """Take out what cannot be cut into blocks of 16, with all that must be quantised alike."""
    bound: dict[str, str] = {name: weight.home for name, weight in chosen.items()}
    for parent, leaves in fused_names(chosen):
        names = [f"{parent}.{leaf}" if parent else leaf for leaf in leaves]
        if bound[names[0]] == names[0]:
            bound.update(dict.fromkeys(names, names[0]))
    ragged: dict[str, Weight] = {}
    for name, weight in chosen.items():
        if weight.columns % BLOCK:
            ragged.setdefault(bound[name], weight)
    if ragged and recipe.ragged is Ragged.REFUSE:
        first = next(iter(ragged.values()))
        raise RepairError(
            f"{first.ref.name}: its rows of {first.columns} are no multiple of 16, and the recipe refuses"
        )
    for name in [name for name in chosen if bound[name] in ragged]:
        weight, cause = chosen.pop(name), ragged[bound[name]]
        own = weight.columns % BLOCK
        why = f"rows of {weight.columns}, no multiple of 16" if own else f"{cause.name} is ragged, and it goes with it"
        if not any(left.tensor == weight.ref.name for left in found.left[-1:]):
            found.left.append(Left(weight.ref.name, why))


def _sets(chosen: Mapping[str, Weight]) -> list[tuple[Weight, ...]]:
    """Weights that a server loads under one scale; sets that overlap are one."""
    first: dict[str, str] = {}
    for parent, leaves in fused_names(chosen):
        names = [f"{parent}.{leaf}" if parent else leaf for leaf in leaves]
        key = next((first[name] for name in names if name in first), names[0])
        first.update(dict.fromkeys(names, key))
    groups: dict[str, list[Weight]] = {}
    for name, weight in chosen.items():
        groups.setdefault(first.get(name, name), []).append(weight)
    return [tuple(members) for members in groups.values()]
