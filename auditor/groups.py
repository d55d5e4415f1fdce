"""Layers that a server fuses into one matrix, and therefore loads with one scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from auditor.layer import QuantizedLayer

# The loaders' own maps (vLLM packed_modules_mapping, SGLang stacked_params_mapping), as data.
FUSED_SETS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("q_a", "kv_a_with_mqa"),
    ("wq_a", "wkv"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
    ("wkv", "wgate"),
    ("k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
)
GATE_UP = (("gate_proj", "up_proj"), ("w1", "w3"))
_CROSS = re.compile(r"(?:^|\.)(?:cross_?attn|cross_?attention|encoder_attn|encoder_attention|encdecattention)$", re.I)
_QUERIES = frozenset({"q_proj", "query", "wq"})
_SETS_OF: dict[str, tuple[int, ...]] = {}
for _number, _set in enumerate(FUSED_SETS):
    for _leaf in _set:
        _SETS_OF[_leaf] = (*_SETS_OF.get(_leaf, ()), _number)


class FusedSet(NamedTuple):
    """Siblings under one parent that are fused on load; ``members`` in the order of FUSED_SETS."""

    parent: str
    leaves: tuple[str, ...]
    members: tuple[QuantizedLayer, ...]

    @property
    def is_gate_up(self) -> bool:
        """Whether this is the gate and up projection of one MLP or expert."""
        return self.leaves in GATE_UP

    @property
    def label(self) -> str:
        """q_proj/k_proj/v_proj, for messages."""
        return "/".join(self.leaves)


def fused_sets(layers: Iterable[QuantizedLayer]) -> Iterator[FusedSet]:
    """Every fused set with at least two quantised members, in the order in which their layers came.

    A set that lies wholly within a larger one present under the same parent is left out: k/v of q/k/v.
    """
    by_place = {layer.name.rpartition(".")[::2]: layer for layer in layers}
    for parent, leaves in fused_names(layer.name for layer in by_place.values()):
        yield FusedSet(parent, leaves, tuple(by_place[parent, leaf] for leaf in leaves))


def fused_names(names: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same from module names alone: (parent, leaves) of every set with at least two members."""
    parents: dict[str, set[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        if leaf in _SETS_OF:
            parents.setdefault(parent, set()).add(leaf)
    for parent, children in parents.items():
        if _CROSS.search(parent):  # queries read other states than keys and values, and are not fused with them
            children = children - _QUERIES
        numbers = sorted({n for leaf in children for n in _SETS_OF[leaf]})
        seen: list[frozenset[str]] = []
        for number in numbers:
            leaves = tuple(leaf for leaf in FUSED_SETS[number] if leaf in children)
            if len(leaves) < 2 or any(other >= set(leaves) for other in seen):
                continue
            seen.append(frozenset(leaves))
            yield parent, leaves


_EXPERT = re.compile(r"^(.*\bexperts)\.(\d+)\.(.+)$")


def expert_key(name: str) -> tuple[str, str] | None:
    """(experts module, projection) of an expert's layer: the same for the same projection of its peers."""
    match = _EXPERT.match(name)
    return (match[1], match[3]) if match else None
