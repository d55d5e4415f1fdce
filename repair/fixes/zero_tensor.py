"""GLB101, and SCL101 or SCL104 beside it: a weight that was all zero.

modelopt stores such a weight as weight_scale_2 = 0, codes 7 throughout and block scales NaN (dynamic path) or 448
(static path); converters turn the 0 into an infinite divisor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from auditor.rules.glb101_bad_global_scale import zero_parts
from auditor.scalars import faulty
from quant.scheme import GlobalScale
from repair.effect import Effect
from repair.fixes.blocks import is_nan
from repair.fixes.desk import Desk, float_bytes, pieces
from repair.fixes.proposal import Edit, Left, Proposal

ONE = 0x38  # 1.0, what an export writes for a zero block
_STEP = 1 << 20
_REASON = "every block shows the signature of a weight that was all zero"


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """The whole tensor (or each expert's part of a fused one) becomes a sound zero, where all blocks say so."""
    layer = desk.layer(finding)
    if layer is None or layer.global_scale is None:
        yield Left(finding.code, finding.tensor, "no layer with a global scale")
        return
    before = len([v for v in desk.values(layer.global_scale) if faulty(v)])
    if not before:
        return  # another finding's repair has mended it
    proposals = list(of_layer(finding, layer, desk))
    yield from proposals
    rest = before - sum(p.places for p in proposals)
    if rest:
        reason = "not every block shows the signature of a zero weight: only the source can restore it (--source)"
        yield Left(finding.code, finding.tensor, reason, rest)


def of_layer(finding: Finding, layer: QuantizedLayer, desk: Desk) -> Iterator[Proposal]:
    """The repair of the layer's zero experts, attributed to this finding; nothing where none is zero."""
    ref, geometry = layer.global_scale, layer.geometry()
    if ref is None or geometry is None or ("zero", layer.name) in desk.done:
        return
    values = desk.values(ref)
    zero = zero_parts(layer, values, desk.read)
    if not zero:
        return
    desk.done.add(("zero", layer.name))
    new = _peer_scale(desk, layer)
    raw = float_bytes(new, ref.dtype)
    if raw is None:
        return
    change = f"codes 0x77 -> 0x00, scales NaN -> 0x38, global {values[zero[0]]:g} -> {new:.6g}"
    effect = Effect(layer.name, "the true weights", None, 0.0, "NaN becomes 0, the true value")
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.EXACT,
        _REASON,
        len(zero),
        change,
        _edits(desk, layer, zero, raw),
        (layer.name,),
        (effect,),
    )


def _edits(desk: Desk, layer: QuantizedLayer, zero: list[int], raw: bytes) -> Iterator[Edit]:
    ref = layer.global_scale
    if ref is None:
        return
    experts = ref.size
    held, scaled = layer.codes.nbytes // experts, layer.scales.nbytes // experts
    for expert in zero:
        yield Edit(ref, expert * ref.itemsize, raw)
        for at, length in pieces(held, _STEP):
            if any(desk.read(layer.codes, expert * held + at, length)):
                yield Edit(layer.codes, expert * held + at, bytes(length))
        for at, length in pieces(scaled, _STEP):
            old = np.frombuffer(desk.read(layer.scales, expert * scaled + at, length), np.uint8)
            if is_nan(old).any():
                yield Edit(layer.scales, expert * scaled + at, np.where(is_nan(old), np.uint8(ONE), old).tobytes())


def _peer_scale(desk: Desk, layer: QuantizedLayer) -> float:
    """The fused set's usable global scale (largest, or smallest divisor), the tensor's own, or 1."""
    group = desk.ctx.fused.get(layer.name)
    members = [m for m in group.members if m.format is layer.format] if group else [layer]
    usable = [v for m in members if m.global_scale for v in desk.values(m.global_scale) if not faulty(v)]
    if not usable:
        return 1.0
    return min(usable) if layer.format.global_scale is GlobalScale.DIVIDE else max(usable)


def saturated(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """SCL104: the static path's zero weight is mended as one; hidden saturation needs the source."""
    layer = desk.layer(finding)
    if layer is None:
        return
    proposals = list(of_layer(finding, layer, desk))
    yield from proposals
    if not proposals and ("zero", layer.name) not in desk.done:
        reason = "the larger scales were clamped: only the source can restore them (--source)"
        yield Left(finding.code, finding.tensor, reason, finding.count)
