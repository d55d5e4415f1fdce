"""A checkpoint cast to NVFP4, or brought into another layout: each maker takes the layers that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from auditor.checkpoint import CONFIG, Checkpoint
from auditor.declared import Declared, read_declared
from auditor.layer import QuantizedLayer, Recognised, recognise
from auditor.rules.cfg106_old_exponent_bias import is_old
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make.activations import Activations
from repair.make.assemble import Remade, Wish, assemble, expect_whole, served
from repair.make.castrow import CastRow
from repair.make.job import Job
from repair.make.layouts import Layout
from repair.make.mxcast import Cast, Wanted, cast_layers
from repair.make.mxrows import is_mxfp4
from repair.make.shard import Row
from repair.make.sources import Sources

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
    activations: Activations,
    others: Sequence[Sources] = (),
) -> Casting:
    """The cast of a checkpoint's MXFP4 layers into ``layout``.

    ``sources``: of the same checkpoint; ``others``: of what the activations come from.  RepairError when there is
    nothing to cast, when a tensor has lost its partner, or when a layer is of a kind that no maker knows.
    """
    expect_whole(checkpoint)
    tensors = served(checkpoint)
    found, declared = recognise(tensors.values()), read_declared(checkpoint)
    layers = [layer for layer in found.layers if is_mxfp4(layer)]
    _expect_sound(checkpoint, found, declared, layers)
    made = list(cast_layers(layers, Wanted(layout, activations, sources, tensors)))
    rest = [layer for layer in found.layers if not is_mxfp4(layer)]
    wish = Wish(KIND, {"activations": activations.label}, layout, CastRow, "FP8" in declared.kv_cache.upper())
    remade = [*(one.remade for one in made), *_others(rest, declared, layout)]
    return Casting(assemble(wish, checkpoint, sources, remade, others), lambda: _told(made))


def _told(made: Iterable[Cast]) -> Iterator[Row]:
    for one in made:
        yield from one.rows()


def _others(layers: Sequence[QuantizedLayer], declared: Declared, layout: Layout) -> Iterator[Remade]:
    """Layers that are quantised in another way than MXFP4: what becomes of them beside it."""
    for layer in layers:
        what = f"{layer.codes.shard}: {layer.codes.name}: {layer.format.name_for(declared.method)} beside MXFP4"
        raise RepairError(f"{what} cannot be declared in the layout of {layout.value} yet")
    return iter(())


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
