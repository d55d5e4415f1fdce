"""A checkpoint in another layout: modelopt's NVFP4 and FP8 as compressed-tensors', and back.

Nothing is quantised anew: codes and block scales are copied.  What the other layout's loaders cannot read is refused by
name, never copied under a declaration that would make something else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

from auditor.architecture import model_types
from auditor.checkpoint import CONFIG, Checkpoint
from auditor.declaration import Algorithm, Group
from auditor.declared import Declared, read_declared
from auditor.layer import QuantizedLayer, Recognised, recognise
from quant.errors import RepairError
from repair.make import convert_experts, convert_fp8, convert_nvfp4
from repair.make.assemble import Remade, Wish, assemble, expect_whole, served
from repair.make.convert_kv import convert_kv
from repair.make.convertrow import Converted, ConvertRow, Into
from repair.make.declare import Declaration, texts
from repair.make.experts import KEPT_FUSED
from repair.make.job import Job
from repair.make.layouts import Layout
from repair.make.sources import Sources

KIND = "convert"
_METHODS = frozenset({"modelopt", "compressed-tensors", "fp8"})
_WAYS: dict[str, Callable[[QuantizedLayer, Into], Converted]] = {
    **dict.fromkeys(convert_nvfp4.FORMATS, convert_nvfp4.convert),
    **dict.fromkeys(convert_fp8.FORMATS, convert_fp8.convert),
    **dict.fromkeys(convert_experts.FORMATS, convert_experts.convert),
}


def plan(checkpoint: Checkpoint, sources: Sources, layout: Layout) -> tuple[Job, Callable[[], Iterator[ConvertRow]]]:
    """The job that makes a checkpoint of ``layout``, and its rows, told from headers and scales without writing.

    RepairError when the checkpoint is in that layout already, and naming the first tensor that the layout has no
    place for, that is not understood, or whose scale has no reciprocal.
    """
    expect_whole(checkpoint)
    tensors = served(checkpoint)
    found, declared = recognise(tensors.values()), read_declared(checkpoint)
    _expect_understood(checkpoint, found, declared)
    if declared.method == layout.value:
        raise RepairError(f"{checkpoint.name}: is in the layout of {layout.value} already")
    into = Into(layout, declared, sources, tensors, checkpoint.config or {})
    made = list(convert_layers(found.layers, into))
    remade = [*(one.remade for one in made), *convert_kv(found.kv, into)]
    wish = Wish(KIND, {}, layout, ConvertRow, "FP8" in declared.kv_cache.upper())
    return assemble(wish, checkpoint, sources, remade), lambda: _rows(made)


def _rows(made: Iterable[Converted]) -> Iterator[ConvertRow]:
    for one in made:
        yield from one.rows()


def convert_layers(layers: Sequence[QuantizedLayer], into: Into) -> Iterator[Converted]:
    """What becomes of each layer; those that need no change are kept and declared.

    RepairError naming the first that cannot be brought into the layout.
    """
    fused = sorted(set(model_types(into.config)) & KEPT_FUSED)
    for layer in layers:
        where = f"{layer.codes.shard}: {layer.codes.name}"
        way = _WAYS.get(layer.format.name)
        if way is None:
            name = layer.format.name_for(into.declared.method)
            raise RepairError(f"{where}: {name} is no layout that converts into {into.layout.value}")
        if into.layout is Layout.MODELOPT and fused and ".experts." in f"{layer.module}." and not layer.format.stemmed:
            raise RepairError(f"{where}: modelopt keeps the experts of {fused[0]} fused; that way back is not written")
        one = way(layer, into)
        _expect_declarable(where, one.remade, into.layout)
        yield one


def _expect_declarable(where: str, remade: Remade, layout: Layout) -> None:
    why = _undeclarable(remade.algorithm, layout) if remade.algorithm else ""
    if why:
        raise RepairError(f"{where}: {why}")


@cache  # layers are many, algorithms are few
def _undeclarable(algorithm: Algorithm, layout: Layout) -> str:
    try:
        texts(layout, {}, Declaration((Group("group_0", algorithm, ("Linear",)),)))
    except RepairError as error:
        return str(error)
    return ""


def _expect_understood(checkpoint: Checkpoint, found: Recognised, declared: Declared) -> None:
    if checkpoint.config is None:
        raise RepairError(f"{checkpoint.name}: has no {CONFIG}, which must declare what is made")
    if declared.method not in _METHODS:
        method = declared.method or "nothing"
        raise RepairError(f"{checkpoint.name}: declares {method}; only {', '.join(sorted(_METHODS))} are converted")
    for ref, names in found.ambiguous:
        raise RepairError(f"{ref.shard}: {ref.name}: may be {' or '.join(names)}")
    for ref in found.unclaimed:
        shape = f"{ref.dtype} {list(ref.shape)}"
        raise RepairError(f"{ref.shard}: {ref.name}: {shape} belongs to no weight that is understood")
