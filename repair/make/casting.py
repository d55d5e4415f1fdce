"""A checkpoint cast to NVFP4, or brought into another layout: each maker takes the layers that are its own.

MXFP4 weights are cast (`mxcast`).  What is quantised otherwise beside them is brought into the layout (`convert`), and
a checkpoint without MXFP4 is only that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from auditor.checkpoint import CONFIG, Checkpoint
from auditor.declared import Declared, read_declared
from auditor.layer import QuantizedLayer, Recognised, recognise
from auditor.rules.cfg106_old_exponent_bias import is_old
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make import convert
from repair.make.activations import Activations, NoScales
from repair.make.assemble import Remade, Wish, assemble, expect_whole, served
from repair.make.castrow import CastRow
from repair.make.convert_kv import convert_kv
from repair.make.convertrow import Into
from repair.make.job import Job
from repair.make.layouts import Layout
from repair.make.mxcast import Cast, Wanted, cast_layers
from repair.make.mxrows import is_mxfp4
from repair.make.shard import Row, Task
from repair.make.sources import Sources
from repair.make.ue8m0 import convert_ue8m0, is_ue8m0

KIND = "cast"


@dataclass(frozen=True)
class Casting:
    """A cast that is ready to be made.  ``rows``: its table, told from headers and scales without writing."""

    job: Job
    rows: Callable[[], Iterator[Row]]


def plan(
    checkpoint: Checkpoint,
    sources: Sources,
    layout: Layout,
    activations: Activations | None = None,
    others: Sequence[Sources] = (),
) -> Casting:
    """The cast of a checkpoint's MXFP4 layers into ``layout``; without any, the checkpoint in that layout.

    ``sources``: of the same checkpoint; ``activations``: None for none; ``others``: of what they come from.
    RepairError when a tensor has lost its partner, a layer is of a kind that no maker knows, or nothing is to be done.
    """
    expect_whole(checkpoint)
    tensors = served(checkpoint)
    found, declared = recognise(tensors.values()), read_declared(checkpoint)
    layers = [layer for layer in found.layers if is_mxfp4(layer)]
    if not layers and found.layers:
        if activations is not None:
            raise RepairError(f"{checkpoint.name}: has no MXFP4 weights; its activation scales are kept as they are")
        return Casting(*convert.plan(checkpoint, sources, layout))
    _expect_sound(checkpoint, found, declared, layers)
    given = activations or NoScales()
    made = list(cast_layers(layers, Wanted(layout, given, sources, tensors)))
    rest = [layer for layer in found.layers if not is_mxfp4(layer)]
    into = Into(layout, declared, sources, tensors, checkpoint.config or {})
    remade = [*(one.remade for one in made), *_beside(rest, into), *convert_kv(found.kv, into)]
    wish = Wish(KIND, {"activations": given.label}, layout, CastRow, "FP8" in declared.kv_cache.upper())
    return Casting(assemble(wish, checkpoint, sources, remade, others), lambda: _told(made))


def _told(made: Iterable[Cast]) -> Iterator[Row]:
    for one in made:
        yield from one.rows()


def _beside(layers: Sequence[QuantizedLayer], into: Into) -> Iterator[Remade]:
    """What becomes of layers that are quantised in another way than MXFP4; they have no rows in a cast's table."""
    for layer in layers:
        made = convert_ue8m0(layer, into) if is_ue8m0(layer) else next(convert.convert_layers([layer], into)).remade
        yield replace(made, tasks=tuple(map(_silent, made.tasks)))


def _silent(task: Task) -> Task:
    return lambda: (piece for piece in task() if not isinstance(piece, Row))


def _expect_sound(
    checkpoint: Checkpoint, found: Recognised, declared: Declared, layers: Sequence[QuantizedLayer]
) -> None:
    """RepairError for what would make a cast mean something else than the source."""
    if checkpoint.config is None:
        raise RepairError(f"{checkpoint.name}: has no {CONFIG}, which must declare what is made")
    for ref, names in found.ambiguous:
        raise RepairError(f"{ref.shard}: {ref.name}: may be {' or '.join(names)}")
    for ref in found.unclaimed:
        raise RepairError(f"{ref.shard}: {ref.name}: {_lost(ref)}")
    if any(layer.format.name == "ct-mxfp4" for layer in layers) and is_old(declared.version):
        raise RepairError(
            f"{declared.file}: compressed-tensors {declared.version} counted MXFP4 exponents from 125, so every weight "
            f"reads four times too small; mend it first: audit repair {checkpoint.name} --select CFG106 --risk guess"
        )


def _lost(ref: TensorRef) -> str:
    for leaf, partner in (("_blocks", "_scales"), ("_scales", "_blocks")):
        if ref.name.endswith(leaf):
            return f"has no {ref.name.removesuffix(leaf)[-100:]}{partner} beside it, or one of another kind"
    return f"{ref.dtype} {list(ref.shape)} belongs to no weight that is understood; its partner may be missing"
