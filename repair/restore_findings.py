"""Findings mended from the unquantised checkpoint: which repair each rule gets, as proposals for the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from auditor.tensorref import FLOAT_DTYPES
from quant.errors import RepairError
from repair.effect import against_source
from repair.fixes.blocks import Picked, pick
from repair.fixes.desk import Desk
from repair.fixes.proposal import Edit, Left, Proposal
from repair.measure_error import layer_error
from repair.restore import Restorer
from repair.restore_evidence import Saturation, require_source, saturation
from repair.restore_floats import float_values
from repair.restore_habits import Habits
from repair.restore_pieces import Overlay, Piece, read_array
from repair.source_codes import floats

SETS = frozenset({"GLB101", "GLB102", "SCL104", "SCL105", "SCL108"})
"""Rules whose finding concerns a whole layer or fused set: it is requantised."""
BLOCKS: dict[str, Callable[[Picked], np.ndarray[tuple[int], np.dtype[np.bool_]]]] = {
    "SCL101": lambda b: (b.scales & 0x7F) == 0x7F,
    "SCL102": lambda b: (b.scales == 0) & ~b.zeros,
    "SCL103": lambda b: (b.scales >= 0x80) & (b.scales != 0xFF),
    "SCL106": lambda b: b.scales == 0xFF,
    "SCL109": lambda b: b.sevens & (b.scales != 0),
}
"""Rules about single blocks, and which blocks those are."""
VALUES = frozenset({"WGT101", "WGT102"})
"""Rules about single weights."""
CODES = SETS | VALUES | BLOCKS.keys()
_STEP = 1 << 20
_OWN = 0.9  # share of a layout's bytes, damaged ones among them, below which a recipe is said to be another's


def proposals(finding: Finding, desk: Desk, habits: Habits) -> Iterator[Proposal | Left]:
    """The repair of one finding from the source; Left with the reason when the source cannot give it.

    ``habits.reader`` should be the desk, so that what is planned already is seen.  A layer is requantised once, for
    whichever of its set's findings comes first; the others then yield nothing.  Raises nothing.
    """
    layer = desk.layer(finding)
    try:
        if layer is None or (finding.tensor != layer.codes.name and finding.code == "WGT101"):
            yield from _copied(finding, desk, habits)
        elif ("source", layer.name) in desk.done:
            return
        elif finding.code in SETS or _needs_set(finding, layer, desk, habits):
            yield from _requantised(finding, _together(layer, habits), desk, habits)
        elif finding.code in VALUES:
            yield from _codes(finding, layer, desk, habits)
        else:
            yield from _blocks(finding, layer, desk, habits)
    except RepairError as error:
        yield Left(finding.code, finding.tensor, str(error), finding.count)


def _needs_set(finding: Finding, layer: QuantizedLayer, desk: Desk, habits: Habits) -> bool:
    """Whether another finding of the layer's set, or a scale that cannot be worked under, asks for all of it."""
    if habits.to_requantise is None:
        asking = (desk.layer(other) for other in desk.findings if other.code in SETS - {"SCL104"})
        habits.to_requantise = frozenset(known.name for known in asking if known is not None)
    if any(member.name in habits.to_requantise for member in _together(layer, habits)):
        return True
    if finding.code not in VALUES or layer.format.packed:
        return False
    raw = read_array(desk, layer.scales, 0, layer.scales.nbytes)
    if layer.scales.dtype not in FLOAT_DTYPES:
        return bool((raw == 0xFF).any())
    held = floats(raw.reshape(1, -1), layer.scales)
    return not bool((np.isfinite(held) & (held > 0)).all())


def _together(layer: QuantizedLayer, habits: Habits) -> tuple[QuantizedLayer, ...]:
    """The layers to make anew with this one: its set where that shares a global scale, else none."""
    return habits.members(layer) if layer.global_scale is not None else (layer,)


def _requantised(
    finding: Finding, members: Sequence[QuantizedLayer], desk: Desk, habits: Habits
) -> Iterator[Proposal | Left]:
    for layer in members:
        require_source(layer, habits)
    if finding.code == "SCL104":
        over = [_saturated(layer, desk, habits) for layer in members]
        if not any(one.count for one in over):
            reason = "the source shows that no scale had to be clamped"
            yield Left(finding.code, finding.tensor, reason, finding.count)
            return
    before = {m.name: layer_error(m, habits.source, desk) for m in members}
    restorer = Restorer(habits)
    after = restorer.predict(members)
    names = tuple(m.name for m in members)
    effects = tuple(against_source(name, before[name], after[name]) for name in names)
    recipe = _way(habits, members[0])
    shared = "" if len(members) == 1 else f" with the amax of {'/'.join(m.leaf for m in members)}"
    desk.done.update(("source", name) for name in names)
    edits = (Edit(*piece) for piece in restorer.requantise(members))
    yield Proposal(
        finding.code, finding.tensor, Safety.RESTORED, f"requantised from the source ({recipe}){shared}", finding.count,
        f"codes and scales of {len(members)} layer{'s' * (len(members) > 1)} anew", edits, names, effects,
        "/".join(m.leaf for m in members) if len(members) > 1 else "",
    )  # fmt: skip


def _blocks(finding: Finding, layer: QuantizedLayer, desk: Desk, habits: Habits) -> Iterator[Proposal | Left]:
    geometry, wanted = layer.geometry(), BLOCKS.get(finding.code)
    if geometry is None or wanted is None:
        yield Left(finding.code, finding.tensor, "the shapes of codes and scales do not agree", finding.count)
        return
    require_source(layer, habits)
    if layer.global_scale is not None and _saturated(layer, desk, habits).count:
        yield from _requantised(
            finding, _together(layer, habits), desk, habits
        )  # too small a global scale for the layer
        return
    everything = finding.code == "SCL109"
    found = pick(desk, layer, geometry, lambda s: np.ones(s.shape, np.bool_) if everything else _suspicious(s))
    flat = [int(i) for blocks in found for i in blocks.flat[wanted(blocks)]]
    if flat:
        pieces = list(Restorer(habits).blocks(layer, flat))
        yield _proposal(finding, layer, desk, habits, pieces, len(flat), "block")


def _saturated(layer: QuantizedLayer, desk: Desk, habits: Habits) -> Saturation:
    return saturation(layer, habits.source, desk, habits.own(habits.recipe(layer).recipe, layer))


def _suspicious(scales: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray((scales == 0) | (scales >= 0x7F))


def _codes(finding: Finding, layer: QuantizedLayer, desk: Desk, habits: Habits) -> Iterator[Proposal | Left]:
    require_source(layer, habits)
    flat: list[int] = []
    for at in range(0, layer.codes.nbytes, _STEP):
        raw = read_array(desk, layer.codes, at, min(_STEP, layer.codes.nbytes - at))
        flat += (np.flatnonzero((raw & 0x7F) == 0x7F) + at).tolist()
    if flat:
        pieces = list(Restorer(habits).codes(layer, flat))
        yield _proposal(finding, layer, desk, habits, pieces, len(flat), "weight")


def _copied(finding: Finding, desk: Desk, habits: Habits) -> Iterator[Proposal | Left]:
    ref = desk.ref(finding.tensor)
    if ref is None or ref.dtype not in FLOAT_DTYPES:
        yield Left(finding.code, finding.tensor, "not a tensor that can be copied from the source", finding.count)
        return
    flat: list[int] = []
    step = _STEP // ref.itemsize
    for first in range(0, ref.size, step):
        count = min(step, ref.size - first)
        values = floats(read_array(desk, ref, first * ref.itemsize, count * ref.itemsize).reshape(1, -1), ref)
        flat += (np.flatnonzero(~np.isfinite(values)) + first).tolist()
    if flat:
        edits = [Edit(*piece) for piece in float_values(ref, flat, habits.source, desk)]
        change = f"{len(flat)} value{'s' * (len(flat) > 1)} copied"
        yield Proposal(
            finding.code, finding.tensor, Safety.RESTORED, "copied from the source", len(flat), change, edits
        )  # fmt: skip


def _proposal(
    finding: Finding, layer: QuantizedLayer, desk: Desk, habits: Habits, pieces: list[Piece], count: int, what: str
) -> Proposal:
    before = layer_error(layer, habits.source, desk)
    after = layer_error(layer, habits.source, Overlay(desk, pieces))
    reason = f"restored from the source ({_way(habits, layer)})"
    change = f"{count} {what}{'s' * (count > 1)} anew"
    edits = [Edit(*piece) for piece in pieces]
    return Proposal(
        finding.code, finding.tensor, Safety.RESTORED, reason, count, change, edits, (layer.name,),
        (against_source(layer.name, before, after),),
    )  # fmt: skip


def _way(habits: Habits, layer: QuantizedLayer) -> str:
    """The recipe's name, and how little of the sound bytes it gives where it is not the exporter's own."""
    found = habits.recipe(layer)
    told = found.looked > 0 and found.share < _OWN
    return f"{found.recipe.name}, which gives {found.share:.0%} of the export's bytes" if told else found.recipe.name
