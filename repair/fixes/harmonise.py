"""GLB102: one global scale for a fused set; block scales re-rounded to match, codes untouched.

A member's block scale byte b means v(b) * s.  Under the set's scale s* it becomes the byte nearest to
v(b) * s / s* (ties to even): a table of 256 entries, so a tensor of any size is one look-up per byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from auditor.scalars import faulty
from quant.cast import encode
from quant.codes import E4M3
from quant.scheme import GlobalScale
from repair.effect import Effect, Energy, counts, energy, steps
from repair.fixes.blocks import Bytes, pick, zero_codes
from repair.fixes.desk import Desk, pieces
from repair.fixes.proposal import Edit, Left, Proposal

_STEP = 1 << 20
_MEASURED = 64 << 20  # bytes of codes up to which the error is weighted by the codes


@dataclass(frozen=True)
class Member:
    """One projection (one expert of a fused 3-D one) whose block scales change: ``rows`` of its scales."""

    layer: QuantizedLayer
    expert: int
    old: float
    new: float
    rows: tuple[int, int]
    table: Bytes
    found: NDArray[np.int64]  # block scales by byte

    @property
    def flushed(self) -> int:
        """Block scales that become zero."""
        return int(self.found[(self.table == 0) & _POSITIVE].sum())

    @property
    def subnormal(self) -> int:
        """Block scales that become subnormal."""
        below = (self.table & 0x7F < 8) & (self.table & 0x7F > 0)
        return int(self.found[below & (np.arange(256) & 0x7F >= 8)].sum())

    @property
    def exact(self) -> bool:
        """Whether every weight keeps its value."""
        values = E4M3.values
        ratio = Fraction(self.old) / Fraction(self.new) if not self.divides else Fraction(self.new) / Fraction(self.old)
        return all(
            Fraction(float(values[b])) * ratio == Fraction(float(values[self.table[b]]))
            for b in np.flatnonzero(self.found)
            if b & 0x7F != 0x7F
        )

    @property
    def divides(self) -> bool:
        """Whether the global scale is a divisor."""
        return self.layer.format.global_scale is GlobalScale.DIVIDE


_POSITIVE = (np.arange(256) & 0x7F > 0) & (np.arange(256) & 0x7F < 0x7F)


def rescaled(ratio: Fraction) -> Bytes:
    """The byte nearest to ``ratio`` (at most 1) times the value of each E4M3 byte, ties to even; NaN stays.

    uint8 [256].  The exact product is brought to float32 by rounding to odd, which no later rounding to four bits
    can tell from the product itself.
    """
    table = np.arange(256, dtype=np.uint8)
    exact = [Fraction(float(v)) * ratio for v in E4M3.values[:0x7F]]
    magnitudes = encode(E4M3, np.array([_to_odd(x) for x in exact], np.float32)).codes
    table[:0x7F] = magnitudes
    table[0x80:0xFF] = magnitudes | 0x80
    return table


def _to_odd(x: Fraction) -> np.float32:
    """``x`` (not negative) in float32: itself, or the neighbour with an odd last bit."""
    near = np.array([float(x)], np.float32)
    if Fraction(float(near[0])) > x:
        near = np.nextafter(near, np.float32(0))
    if Fraction(float(near[0])) != x:
        near = (near.view(np.uint32) | np.uint32(1)).view(np.float32)
    return np.float32(near[0])


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """One proposal for the set: global scales, block scales, and nothing else."""
    layer = desk.layer(finding)
    members = _set(desk, layer, finding) if layer else []
    columns = [desk.values(m.global_scale) for m in members if m.global_scale]
    if not members or len({tuple(c) for c in columns}) == 1:
        return
    label = "/".join(m.leaf for m in members)
    for member, values in zip(members, columns, strict=True):
        if any(map(faulty, values)):
            reason = f"{member.leaf} has an unusable global scale, which is not repaired at this risk"
            yield Left(finding.code, finding.tensor, reason)
            return
        geometry = member.geometry()
        if geometry is None or geometry.rows % len(values):
            yield Left(finding.code, finding.tensor, f"{member.leaf}: the shapes of codes and scales do not agree")
            return
    changing = list(_changing(desk, members, columns))
    exact = all(m.exact for m in changing)
    effects = tuple(_effect(desk, m) for m in changing)
    change = "; ".join(f"{m.layer.leaf} {m.old:.6g} -> {m.new:.6g}" for m in changing[:3])
    if len(changing) > 3:
        change += f"; and {len(changing) - 3} more"
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.EXACT if exact else Safety.BOUNDED,
        _reason(changing, exact),
        max(1, len({m.expert for m in changing})),
        change,
        _edits(desk, members, changing),
        tuple(m.name for m in members),
        effects,
        label,
    )


def _set(desk: Desk, layer: QuantizedLayer, finding: Finding) -> list[QuantizedLayer]:
    """The members that the finding names, in its order."""
    names = {finding.tensor, *finding.related}
    for group in desk.ctx.groups:
        found = [m for m in group.members if m.global_scale and m.global_scale.name in names]
        if layer in group.members and len(found) == len(names):
            return found
    return []


def _changing(desk: Desk, members: Sequence[QuantizedLayer], columns: list[list[float]]) -> Iterator[Member]:
    for expert in range(len(columns[0])):
        column = [values[expert] for values in columns]
        divides = members[0].format.global_scale is GlobalScale.DIVIDE
        target = min(column) if divides else max(column)
        for layer, value in zip(members, column, strict=True):
            geometry = layer.geometry()
            if value == target or geometry is None:
                continue
            height = geometry.rows // len(columns[0])
            rows = (expert * height, (expert + 1) * height)
            ratio = Fraction(target) / Fraction(value) if divides else Fraction(value) / Fraction(target)
            found = counts(layer, desk.read, rows)
            yield Member(layer, expert, value, target, rows, rescaled(ratio), found)


def _reason(changing: Sequence[Member], exact: bool) -> str:
    word = "smallest divisor" if changing[0].divides else "largest global scale"
    how = "block scales shifted, the ratio is a power of two" if exact else "block scales re-rounded"
    flushed, subnormal = sum(m.flushed for m in changing), sum(m.subnormal for m in changing)
    lost = [f"{flushed} scales become zero"] * bool(flushed) + [f"{subnormal} become subnormal"] * bool(subnormal)
    return f"the set's {word} for all, {how}" + "".join(f", {part}" for part in lost)


def _effect(desk: Desk, member: Member) -> Effect:
    """Before: the error of a loader that takes the set's scale without rescaling; after: of the re-rounding."""
    layer, divides = member.layer, member.divides
    true, loaded = steps(member.old, divides), steps(member.new, divides)
    after = loaded[member.table]
    known = energy(layer, desk.read, member.rows) if layer.codes.nbytes <= _MEASURED else None
    if known is None:  # large: every block counts the same
        blocks = member.found.astype(np.float64)
        known = Energy(blocks, blocks)
    lost = member.flushed + member.subnormal
    note = f"{member.flushed} scales to zero, {member.subnormal} to subnormal" if lost else ""
    return Effect(layer.name, "the stored weights", known.error(true, loaded), known.error(true, after), note)


def _edits(desk: Desk, members: Sequence[QuantizedLayer], changing: Sequence[Member]) -> Iterator[Edit]:
    for member in changing:
        layer, ref = member.layer, member.layer.global_scale
        refs = [m.global_scale for m in members if m.global_scale]
        giver = next(r for r in refs if desk.values(r)[member.expert] == member.new)
        geometry = layer.geometry()
        if ref is None or geometry is None:
            continue
        raw = desk.read(giver, member.expert * giver.itemsize, giver.itemsize)
        inner = geometry.inner
        first, last = member.rows[0] * inner, member.rows[1] * inner
        if member.flushed:  # a zero scale over live codes reads as 0: so do the codes from now on
            for blocks in pick(desk, layer, geometry, lambda s, m=member: (m.table[s] == 0) & _POSITIVE[s]):  # type: ignore[misc]
                here = blocks.where(~blocks.zeros & (blocks.flat >= first) & (blocks.flat < last))
                yield from zero_codes(layer, geometry, here.flat)
        for at, length in pieces(last - first, _STEP):
            old = np.frombuffer(desk.read(layer.scales, first + at, length), np.uint8)
            yield Edit(layer.scales, first + at, member.table[old].tobytes())
        yield Edit(ref, member.expert * ref.itemsize, raw)
