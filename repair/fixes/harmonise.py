"""GLB102: one global scale for a fused set; block scales re-rounded to match, codes untouched.

A member's block scale byte b means v(b) * s.  Under the set's scale s* it becomes the byte nearest to
v(b) * s / s* (ties to even): a table of 256 entries, so a tensor of any size is one look-up per byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from auditor.rules.glb102_fused_global_mismatch import rerounded, rescalable
from auditor.scalars import faulty
from quant.cast import encode, nearest
from quant.codes import E4M3
from quant.scheme import GlobalScale
from repair.effect import Effect, Energy, counts, steps
from repair.fixes.blocks import Bytes, pick, zero_codes
from repair.fixes.desk import Desk, pieces
from repair.fixes.proposal import Edit, Left, Proposal, Rescale

_STEP = 1 << 20
Mask = NDArray[np.bool_]


@dataclass
class Member:
    """One projection (one expert of a fused 3-D one) whose block scales change: ``rows`` of its scales.

    ``maybe`` and ``surely``: scale bytes that may and that do occur, bool [256]; ``count`` counts them where that does
    not settle what is asked.
    """

    layer: QuantizedLayer
    expert: int
    old: float
    new: float
    rows: tuple[int, int]
    maybe: Mask
    surely: Mask
    count: Callable[[], NDArray[np.int64]]

    @cached_property
    def ratio(self) -> Fraction:
        """What block scales are multiplied by, exactly."""
        return ratio_of(self.old, self.new, self.divides)

    @cached_property
    def table(self) -> Bytes:
        """The new byte of each."""
        return rescaled(self.ratio)

    @cached_property
    def found(self) -> NDArray[np.int64]:
        """Block scales by byte."""
        return self.count()

    @cached_property
    def flushed(self) -> int:
        """Block scales that become zero."""
        return self._among((self.table == 0) & _POSITIVE)

    @cached_property
    def subnormal(self) -> int:
        """Block scales that become subnormal."""
        magnitude = self.table & 0x7F
        return self._among((magnitude < 8) & (magnitude > 0) & _NORMAL)

    def _among(self, wanted: Mask) -> int:
        return int(self.found[wanted].sum()) if (wanted & self.maybe).any() else 0

    @cached_property
    def exact(self) -> bool:
        """Whether every weight keeps its value."""
        if not self._keeps(self.surely):
            return False
        return self._keeps(self.maybe) or self._keeps(self.found > 0)

    def _keeps(self, present: Mask) -> bool:
        top, bottom = self.ratio.numerator, self.ratio.denominator
        after = self.table.tolist()
        return all(_UNITS[b & 0x7F] * top == _UNITS[after[b] & 0x7F] * bottom for b in np.flatnonzero(present).tolist())

    @property
    def divides(self) -> bool:
        """Whether the global scale is a divisor."""
        return self.layer.format.global_scale is GlobalScale.DIVIDE


_MAGNITUDE = np.arange(256) & 0x7F
_POSITIVE = (_MAGNITUDE > 0) & (_MAGNITUDE < 0x7F)
_NORMAL = _MAGNITUDE >= 8
# Magnitudes in units of the smallest, as whole numbers; NaN as 0: it stays what it is.
_UNITS = [int(float(v) * 512) for v in E4M3.values[:0x7F]] + [0]
_FINITE = E4M3.values[:0x7F].astype(np.float64)
_EXACT_IN_FLOAT64 = 25  # bits of both sides of a ratio of float32 numbers, powers of two apart


def ratio_of(old: float, new: float, divides: bool) -> Fraction:
    """What block scales are multiplied by when the global scale (the divisor) goes from ``old`` to ``new``."""
    return Fraction(new) / Fraction(old) if divides else Fraction(old) / Fraction(new)


def rescaled(ratio: Fraction) -> Bytes:
    """The byte nearest to ``ratio`` (at most 1) times the value of each E4M3 byte, ties to even; NaN stays.

    uint8 [256].  What becomes zero becomes +0, whatever its sign.  Where rounding to float64 might decide, the exact
    product is brought to float32 by rounding to odd, which no later rounding to four bits can tell from the product
    itself.
    """
    table = np.arange(256, dtype=np.uint8)
    magnitudes = nearest(E4M3, _FINITE * float(ratio), 2.0**-50)
    if magnitudes is None:
        magnitudes = encode(E4M3, _to_odd(_products(ratio))).codes
    table[:0x7F] = magnitudes
    table[0x80:0xFF] = np.where(magnitudes == 0, 0, magnitudes | 0x80)
    return table


def _products(ratio: Fraction) -> NDArray[np.float64]:
    """Magnitudes times ``ratio``, float64 [127], on the right side of every number of five bits.

    A quotient of whole numbers of 29 and 25 bits that is no such number is at least 2^-31 away from it, so that one
    rounding to float64 cannot reach it.  Ratios of longer numbers are moved by exact arithmetic.
    """
    top, bottom = ratio.numerator, ratio.denominator
    up, down = (n & -n for n in (top, bottom))
    if max((top // up).bit_length(), (bottom // down).bit_length()) <= _EXACT_IN_FLOAT64:
        units = np.array(_UNITS[:0x7F], np.float64) * float(top // up) / float(bottom // down)
        return np.ldexp(units, up.bit_length() - down.bit_length() - 9)
    return np.array([_beside(Fraction(n, 512) * ratio) for n in _UNITS[:0x7F]])


def _beside(x: Fraction) -> float:
    """The float64 nearest to ``x``; a hair off towards it where that is a number of few bits and ``x`` is not."""
    near = float(x)
    if Fraction(near) == x or (math.frexp(near)[0] * 64) % 1:
        return near
    return math.nextafter(near, math.inf if Fraction(near) < x else 0.0)


def _to_odd(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """``x`` (not negative) in float32: itself, or the neighbour with an odd last bit."""
    near = x.astype(np.float32)
    near = np.where(near > x, np.nextafter(near, np.float32(0)), near)
    return np.where(near == x, near, (near.view(np.uint32) | np.uint32(1)).view(np.float32))


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
        if geometry is None or not values or geometry.rows % len(values):
            yield Left(finding.code, finding.tensor, f"{member.leaf}: the shapes of codes and scales do not agree")
            return
    if len({m.global_scale.dtype for m in members if m.global_scale}) > 1:
        yield Left(finding.code, finding.tensor, "the set's global scales differ in dtype: FMT108 comes first")
        return
    changing = list(_changing(desk, members, columns))
    ratios = [float(max(m.ratio, 1 / m.ratio)) for m in changing]
    if not rescalable(ratios):
        reason = "so far apart that no block scale would stay normal: one of the global scales is wrong"
        yield Left(finding.code, finding.tensor, reason)
        return
    exact = all(m.exact for m in changing)
    change = "; ".join(f"{m.layer.leaf} {m.old:.6g} -> {m.new:.6g}" for m in changing[:3])
    if len(changing) > 3:
        change += f"; and {len(changing) - 3} more"
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.EXACT if exact else rerounded(ratios),
        _reason(changing, exact),
        max(1, len({m.expert for m in changing})),
        change,
        _edits(desk, members, changing),
        tuple(m.name for m in members),
        group=label,
        measure=lambda: tuple(_measure(desk, changing)),
    )


def _set(desk: Desk, layer: QuantizedLayer, finding: Finding) -> list[QuantizedLayer]:
    """The members that the finding names, in its order."""
    names = {finding.tensor, *finding.related}
    known = desk.ctx.fused.get(layer.name)
    for group in (*([known] if known else []), *desk.ctx.groups):
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
            whole = height == geometry.rows
            count = partial(counts, layer, desk.read, rows)
            yield Member(layer, expert, value, target, rows, *_occurring(desk, layer, whole), count)


def _occurring(desk: Desk, layer: QuantizedLayer, whole: bool) -> tuple[Mask, Mask]:
    """Scale bytes that may occur, and those that surely do in all rows of the layer: as the scan found them."""
    stats = None if desk.overlay.touched(layer.scales) else desk.ctx.byte_stats(layer.scales)
    maybe, surely = np.ones(256, np.bool_), np.zeros(256, np.bool_)
    if stats is not None and not stats.negative.count:
        maybe[:] = False
        maybe[stats.low : stats.high + 1] = True
        maybe[[0, 0x7F, 0xFF]] = [stats.zeros.count > 0, *[stats.nan.count > 0] * 2]
        surely[[low for low in (stats.low, stats.high) if whole and 0 <= low < 256]] = True
    return maybe, surely


def _reason(changing: Sequence[Member], exact: bool) -> str:
    word = "smallest divisor" if changing[0].divides else "largest global scale"
    how = "block scales shifted, the ratio is a power of two" if exact else "block scales re-rounded"
    flushed, subnormal = sum(m.flushed for m in changing), sum(m.subnormal for m in changing)
    lost = [f"{flushed} scales become zero"] * bool(flushed) + [f"{subnormal} become subnormal"] * bool(subnormal)
    return f"the set's {word} for all, {how}" + "".join(f", {part}" for part in lost)


def _measure(desk: Desk, changing: Sequence[Member]) -> Iterator[Effect]:
    for member in changing:
        energy = desk.tally.energy(member.layer, desk.read, member.rows, desk.ctx.announce)
        yield _effect(member, energy)


def _effect(member: Member, known: Energy | None) -> Effect:
    """Before: the error of a loader that takes the set's scale without rescaling; after: of the re-rounding."""
    true, loaded = steps(member.old, member.divides), steps(member.new, member.divides)
    after = loaded[member.table]
    lost = member.flushed + member.subnormal
    notes = [f"{member.flushed} scales to zero, {member.subnormal} to subnormal"] * bool(lost)
    if known is None:  # enough codes were read: every block counts the same
        known = Energy(member.found.astype(np.float64))
        notes.append("all blocks counted alike")
    elif known.taken < known.blocks:
        notes.append(f"estimated from {known.taken} of {known.blocks} blocks")
    of, note = "the stored weights", "; ".join(notes)
    return Effect(member.layer.name, of, known.error(true, loaded), known.error(true, after), note)


def _edits(desk: Desk, members: Sequence[QuantizedLayer], changing: Sequence[Member]) -> Iterator[Edit | Rescale]:
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
        table = member.table.tobytes()
        for at, length in pieces(last - first, _STEP):
            yield Rescale(layer.scales, first + at, length, table)
        yield Edit(ref, member.expert * ref.itemsize, raw)
