"""Blocks under a scale that says nothing: zero over live codes, minus zero, papered over, an E8M0 byte of 0 or 255."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from auditor.finding import Finding, Safety
from auditor.layer import Geometry, QuantizedLayer
from auditor.rules.scl109_lost_block import live
from repair.effect import Effect
from repair.fixes.blocks import Bytes, Pick, Picked, pick, set_scales, zero_codes
from repair.fixes.desk import Desk
from repair.fixes.proposal import Edit, Left, Proposal

_SHAPES = "the shapes of codes and scales do not agree"
_E8M0_ONE = 127


def zero_scale(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """SCL102: the block reads as 0; its codes, which are noise, become 0."""
    reason = "the block reads as 0 already; its codes were made by dividing by that 0"
    yield from _zeroed(finding, desk, lambda s: s == 0, Safety.EXACT, reason, "codes -> 0x00")


def smallest_e8m0(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """SCL107: values of at most 6 * 2^-127 become 0; only on request, since nothing needs it."""
    reason = "the weights are at most 6 * 2^-127 and become 0"
    yield from _zeroed(finding, desk, lambda s: s == 0, Safety.BOUNDED, reason, "codes -> 0x00")


def lost_block(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """SCL109: blocks of sixteen times +6 under a finite scale become 0."""
    reason = "sixteen times +6 is what dividing by a NaN scale leaves: zeroed"
    layer = desk.layer(finding)
    geometry = layer.geometry() if layer else None
    if layer is None or geometry is None:
        yield Left(finding.code, finding.tensor, _SHAPES, finding.count)
        return
    found = sum(int(b.sevens.sum()) for b in pick(desk, layer, geometry, live))
    if found:
        effect = Effect(layer.name, "the stored weights", 0.0, None, "noise becomes 0; content unknown")
        changes = _zero(desk, layer, geometry, live, sevens=True)
        yield Proposal(
            finding.code, finding.tensor, Safety.GUESS, reason, found, "codes 0x77 -> 0x00",
            changes, (layer.name,), (effect,),
        )  # fmt: skip


def minus_zero(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """SCL103: 0x80 becomes 0x00, live codes under it 0, as they read; other negative scales need the source."""
    layer = desk.layer(finding)
    if layer is None:
        yield Left(finding.code, finding.tensor, "no layer of this name", finding.count)
        return
    geometry = layer.geometry()
    minus, negative = 0, 0
    for at in range(0, layer.scales.nbytes, 1 << 20):
        part = np.frombuffer(desk.read(layer.scales, at, min(1 << 20, layer.scales.nbytes - at)), np.uint8)
        minus += int(np.count_nonzero(part == 0x80))
        negative += int(np.count_nonzero((part > 0x80) & (part < 0xFF)))
    if minus:
        changes = _minus_edits(desk, layer, geometry)
        effect = Effect(layer.name, "the stored weights", 0.0, 0.0, "-0 and +0 scale alike")
        yield Proposal(
            finding.code, finding.tensor, Safety.EXACT, "-0 and +0 scale alike", minus, "scale 0x80 -> 0x00",
            changes, (layer.name,), (effect,),
        )  # fmt: skip
    if negative:
        yield Left(finding.code, finding.tensor, "a negative scale is damage: only the source can restore it", negative)


def _minus_edits(desk: Desk, layer: QuantizedLayer, geometry: Geometry | None) -> Iterator[Edit]:
    if geometry is not None:
        yield from _zero(desk, layer, geometry, lambda s: s == 0x80)
    for at in range(0, layer.scales.nbytes, 1 << 20):
        part = np.frombuffer(desk.read(layer.scales, at, min(1 << 20, layer.scales.nbytes - at)), np.uint8)
        yield from set_scales(layer, np.flatnonzero(part == 0x80) + at, 0)


def nan_e8m0(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """SCL106: 255 over zero codes becomes 127; over others only the source knows the exponent."""
    layer = desk.layer(finding)
    geometry = layer.geometry() if layer else None
    need = "the exponent of a live block is lost: only the source can restore it (--source)"
    if layer is None or geometry is None:
        yield Left(finding.code, finding.tensor, need, finding.count)
        return
    zero = live = 0
    for blocks in pick(desk, layer, geometry, _is_255):
        zero += int(blocks.zeros.sum())
        live += int((~blocks.zeros).sum())
    if zero:
        effect = Effect(layer.name, "the stored weights", None, 0.0, "NaN becomes 0, the true value")
        changes = _e8m0_edits(desk, layer, geometry)
        yield Proposal(
            finding.code, finding.tensor, Safety.EXACT, "the block is zero under any finite scale", zero,
            "scale 0xFF -> 0x7F", changes, (layer.name,), (effect,),
        )  # fmt: skip
    if live:
        yield Left(finding.code, finding.tensor, need, live)


def _e8m0_edits(desk: Desk, layer: QuantizedLayer, geometry: Geometry) -> Iterator[Edit]:
    for blocks in pick(desk, layer, geometry, _is_255):
        yield from set_scales(layer, blocks.where(blocks.zeros).flat, _E8M0_ONE)


def _is_255(scales: Bytes) -> NDArray[np.bool_]:
    return np.asarray(scales == 255)


def _zeroed(
    finding: Finding, desk: Desk, wanted: Pick, safety: Safety, reason: str, change: str
) -> Iterator[Proposal | Left]:
    """One proposal: the codes of live blocks under a wanted scale become 0."""
    layer = desk.layer(finding)
    geometry = layer.geometry() if layer else None
    if layer is None or geometry is None:
        yield Left(finding.code, finding.tensor, _SHAPES, finding.count)
        return
    live = sum(int((~b.zeros).sum()) for b in pick(desk, layer, geometry, wanted))
    if not live:
        return
    after = 0.0 if safety is Safety.EXACT else None
    effect = Effect(layer.name, "the stored weights", 0.0, after, "")
    changes = _zero(desk, layer, geometry, wanted)
    yield Proposal(finding.code, finding.tensor, safety, reason, live, change, changes, (layer.name,), (effect,))


def _zero(
    desk: Desk, layer: QuantizedLayer, geometry: Geometry, wanted: Pick, *, sevens: bool = False
) -> Iterator[Edit]:
    for blocks in pick(desk, layer, geometry, wanted):
        chosen: Picked = blocks.where(blocks.sevens if sevens else ~blocks.zeros)
        yield from zero_codes(layer, geometry, chosen.flat)
