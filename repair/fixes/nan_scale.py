"""SCL101: NaN block scales, mended by what the codes under them are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from auditor.finding import Finding, Safety
from auditor.layer import Geometry, QuantizedLayer
from repair.effect import Effect
from repair.fixes import zero_tensor
from repair.fixes.blocks import Picked, is_nan, pick, set_scales, zero_codes
from repair.fixes.desk import Desk
from repair.fixes.proposal import Edit, Left, Proposal

LARGEST = 0x7E  # 448, what a saturating export writes

_LOST = "codes all 0x77 were made by dividing by the NaN, most likely a zero block: zeroed"
_ZERO = "the block is zero under any finite scale"
_OVER = "the true scale was above 448, the nearest byte is 0x7E"


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """One proposal for each of the three cases that occurs."""
    layer = desk.layer(finding)
    geometry = layer.geometry() if layer else None
    if layer is None or geometry is None:
        yield Left(finding.code, finding.tensor, "the shapes of codes and scales do not agree", finding.count)
        return
    yield from zero_tensor.of_layer(finding, layer, desk)
    lost, zero, over = _count(desk, layer, geometry)

    def propose(count: int, safety: Safety, reason: str, change: str, edits: _Edits, note: str) -> Proposal:
        effect = Effect(layer.name, "the stored weights", None, 0.0 if safety is Safety.EXACT else None, note)
        made = _edits(desk, layer, geometry, edits)
        return Proposal(
            finding.code, finding.tensor, safety, reason, count, change, made, (layer.name,), (effect,)
        )  # fmt: skip

    if zero:
        yield propose(zero, Safety.EXACT, _ZERO, "scale NaN -> 0x7E", _write_zero, "NaN becomes 0, the true value")
    if lost:
        change = "codes 0x77 -> 0x00, scale NaN -> 0x38"
        yield propose(lost, Safety.GUESS, _LOST, change, _write_lost, "NaN becomes 0; content unknown")
    if over:
        note = "NaN becomes a value too small by an unknown factor"
        yield propose(over, Safety.GUESS, _OVER, "scale NaN -> 0x7E", _write_over, note)


def _count(desk: Desk, layer: QuantizedLayer, geometry: Geometry) -> tuple[int, int, int]:
    lost = zero = over = 0
    for blocks in pick(desk, layer, geometry, is_nan):
        lost += int(blocks.sevens.sum())
        zero += int(blocks.zeros.sum())
        over += int((~(blocks.sevens | blocks.zeros)).sum())
    return lost, zero, over


_Edits = Callable[[QuantizedLayer, Geometry, Picked], Iterator[Edit]]


def _edits(desk: Desk, layer: QuantizedLayer, geometry: Geometry, write: _Edits) -> Iterator[Edit]:
    for blocks in pick(desk, layer, geometry, is_nan):
        yield from write(layer, geometry, blocks)


def _write_lost(layer: QuantizedLayer, geometry: Geometry, blocks: Picked) -> Iterator[Edit]:
    flat = blocks.where(blocks.sevens).flat
    yield from zero_codes(layer, geometry, flat)
    yield from set_scales(layer, flat, zero_tensor.ONE)


def _write_zero(layer: QuantizedLayer, geometry: Geometry, blocks: Picked) -> Iterator[Edit]:
    yield from set_scales(layer, blocks.where(blocks.zeros).flat, LARGEST)


def _write_over(layer: QuantizedLayer, geometry: Geometry, blocks: Picked) -> Iterator[Edit]:
    flat = blocks.where(~(blocks.sevens | blocks.zeros)).flat
    yield from set_scales(layer, flat, LARGEST)
