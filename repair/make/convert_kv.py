"""KV-cache scales by the names and shapes that the other layout's loaders read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.layer import split
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make.assemble import Remade
from repair.make.convert_scalars import le_bytes, number
from repair.make.convertrow import Into
from repair.make.layouts import Layout
from repair.make.shard import Fill, Piece, Task
from repair.shardheader import Entry

_SIDES = {"k_scale": "k_proj", "v_scale": "v_proj"}


def convert_kv(refs: Sequence[TensorRef], into: Into) -> Iterator[Remade]:
    """k_scale and v_scale, F32: below k_proj and v_proj in modelopt's layout, below the attention in the other.

    The numbers are the same.  RepairError for other scales of the cache, and for a cache that is not FP8.
    """
    if into.declared.kv_cache and "FP8" not in into.declared.kv_cache.upper():
        raise RepairError(f"{into.declared.file}: a KV cache of {into.declared.kv_cache} is not converted")
    for ref in refs:
        module, leaf = split(ref.name)
        if leaf not in _SIDES:
            raise RepairError(f"{ref.shard}: {ref.name}: {leaf} of a KV cache is not converted")
        name = _name(module, leaf, into)
        shape = () if into.layout is Layout.MODELOPT else (1,)
        yield Remade(
            ref.shard, frozenset({ref.name}), (Entry(name, "F32", shape),), (_task(name, ref, into),), (), None
        )


def _name(module: str, leaf: str, into: Into) -> str:
    parent, _, last = module.rpartition(".")
    side = _SIDES[leaf]
    if into.layout is Layout.COMPRESSED_TENSORS:
        return f"{parent if last == side else module}.{leaf}"
    beside = any(f"{module}.{side}.{weight}" in into.tensors for weight in ("weight", "weight_packed"))
    return f"{module}.{side}.{leaf}" if beside else f"{module}.{leaf}"


def _task(name: str, ref: TensorRef, into: Into) -> Task:
    def pieces() -> Iterator[Piece]:
        yield Fill(name, 0, le_bytes(number(into.sources, ref)))

    return pieces
