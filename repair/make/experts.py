"""Experts whose weights lie in one fused 3-D tensor: which axis is which, and where each projection's rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from auditor.architecture import expert_leaves, model_types
from auditor.jsonfile import Json
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.names_tables import INTERLEAVED

GATE_UP, DOWN = "gate_up_proj", "down_proj"
HALVES = ("gate_proj", "up_proj")  # of gate_up, as a server fuses them
# Model types whose exports keep the fused tensors, quantised along axis -2; all others get a module for each expert.
KEPT_FUSED = frozenset({"llama4", "llama4_text", "gpt_oss"})


@dataclass(frozen=True)
class Experts:
    """A fused weight as ``count`` slabs of ``rows`` x ``columns``; ``across``: a slab is stored [columns, rows].

    ``parts``: projection -> its rows of a slab, in the order in which a server fuses them.
    """

    ref: TensorRef
    count: int
    rows: int
    columns: int
    across: bool
    parts: Mapping[str, range]

    @property
    def module(self) -> str:
        """``...mlp.experts``."""
        return self.ref.name.rpartition(".")[0]


def is_fused(ref: TensorRef) -> bool:
    """Whether a tensor's name and rank say that it holds the weights of several experts."""
    return len(ref.shape) == 3 and ("expert" in ref.name or "moe" in ref.name) and not ref.name.endswith("bias")


def fused_experts(ref: TensorRef, tensors: Mapping[str, TensorRef], config: Json | None) -> Experts:
    """A fused tensor understood: gate_up [E, 2I, H] or [E, H, 2I] beside down [E, H, I] or [E, I, H].

    Both shapes together say which it is.  RepairError when this is no such tensor, or its partner is missing.
    """
    module, _, leaf = ref.name.rpartition(".")
    gate_up, down = tensors.get(f"{module}.{GATE_UP}"), tensors.get(f"{module}.{DOWN}")
    if leaf not in (GATE_UP, DOWN) or gate_up is None or down is None:
        raise RepairError(
            f"{ref.shard}: {ref.name}: a 3-D weight {list(ref.shape)} that is not known to hold experts"
            f" ({GATE_UP} beside {DOWN} is); leave it out with --exclude"
        )
    across = _across(gate_up, down)
    rows, columns = ref.shape[:0:-1] if across else ref.shape[1:]
    if leaf == DOWN:
        return Experts(ref, ref.shape[0], rows, columns, across, {DOWN: range(rows)})
    if set(model_types(config)) & INTERLEAVED:
        cuts = range(0, rows, 2), range(1, rows, 2)
    else:
        cuts = range(rows // 2), range(rows // 2, rows)
    return Experts(ref, ref.shape[0], rows, columns, across, dict(zip(HALVES, cuts, strict=True)))


def expect_split(found: Experts, config: Json | None) -> None:
    """RepairError for a model whose loaders know an expert's projections by other names than gate, up and down."""
    known = expert_leaves(model_types(config))
    if known is not None and DOWN not in known[1]:
        raise RepairError(
            f"{found.ref.shard}: {found.ref.name}: loaders of {known[0]} want {', '.join(sorted(known[1]))} of each"
            " expert; save the model under its published names first"
        )


def _across(gate_up: TensorRef, down: TensorRef) -> bool:
    e, a, b = gate_up.shape if len(gate_up.shape) == 3 else (0, 0, 0)
    f, c, d = down.shape if len(down.shape) == 3 else (0, 0, 0)
    plain, turned = (b == c and a == 2 * d), (a == d and b == 2 * c)
    if e != f or plain == turned or not gate_up.size:
        shapes = f"{list(gate_up.shape)} and {list(down.shape)}"
        raise RepairError(f"{gate_up.shard}: {gate_up.name} and {DOWN}: shapes {shapes} do not fit together")
    return turned
