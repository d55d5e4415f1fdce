"""WGT102 with SCL108: an FP8 weight that was all zero; WGT101: FP8 bytes from an overflowing cast."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from quant.codes import E4M3
from repair.effect import Effect
from repair.fixes.desk import Desk, float_bytes, pieces
from repair.fixes.proposal import Edit, Left, Proposal

_STEP = 1 << 20
_SOURCE = "only the source can restore it (--source)"


def zero_weight(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """Bytes 0 and scales 1 where every byte is NaN and every scale 0, for then the weight was zero."""
    layer = desk.layer(finding)
    if layer is None or layer.format.scale is not None or layer.format.element is not E4M3:
        yield Left(finding.code, finding.tensor, _SOURCE, finding.count)
        return
    if ("zero", layer.name) in desk.done:
        return
    one = float_bytes(1.0, layer.scales.dtype)
    if one is None or not _all_nan(desk, layer) or any(v != 0 for v in desk.values(layer.scales)):
        yield Left(finding.code, finding.tensor, f"not the signature of a zero weight: {_SOURCE}", finding.count)
        return
    desk.done.add(("zero", layer.name))
    effect = Effect(layer.name, "the true weights", None, 0.0, "NaN becomes 0, the true value")
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.EXACT,
        "every byte is NaN under a scale of 0: the weight was zero",
        layer.codes.size,
        "bytes NaN -> 0x00, scale 0 -> 1",
        _zero_edits(layer, one),
        (layer.name,),
        (effect,),
    )


def _all_nan(desk: Desk, layer: QuantizedLayer) -> bool:
    if layer.codes.dtype != "F8_E4M3":
        return False
    for at, length in pieces(layer.codes.nbytes, _STEP):
        if ((np.frombuffer(desk.read(layer.codes, at, length), np.uint8) & 0x7F) != 0x7F).any():
            return False
    return True


def _zero_edits(layer: QuantizedLayer, one: bytes) -> Iterator[Edit]:
    yield Edit(layer.scales, 0, one * layer.scales.size)
    for at, length in pieces(layer.codes.nbytes, _STEP):
        yield Edit(layer.codes, at, bytes(length))


def overflowed(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """WGT101: NaN bytes keep their sign when a cast overflows: 0x7E or 0xFE is nearest.  Floats need the source."""
    layer, ref = desk.layer(finding), desk.ref(finding.tensor)
    if layer is None or ref is None or ref.dtype != "F8_E4M3" or ref.name != layer.codes.name:
        yield Left(finding.code, finding.tensor, f"the values are lost: {_SOURCE}", finding.count)
        return
    count = 0
    for at, length in pieces(ref.nbytes, _STEP):
        count += int(np.count_nonzero((np.frombuffer(desk.read(ref, at, length), np.uint8) & 0x7F) == 0x7F))
    if not count:
        return
    effect = Effect(layer.name, "the stored weights", None, None, "NaN becomes the largest magnitude")
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.GUESS,
        "a cast that overflows gives NaN with the value's sign: the largest finite byte of that sign",
        count,
        "0x7F -> 0x7E, 0xFF -> 0xFE",
        _overflow_edits(desk, layer),
        (layer.name,),
        (effect,),
    )


def _overflow_edits(desk: Desk, layer: QuantizedLayer) -> Iterator[Edit]:
    for at, length in pieces(layer.codes.nbytes, _STEP):
        codes = np.frombuffer(desk.read(layer.codes, at, length), np.uint8)
        for i in np.flatnonzero((codes & 0x7F) == 0x7F):
            yield Edit(layer.codes, at + int(i), bytes([int(codes[i]) & 0xFE]))
