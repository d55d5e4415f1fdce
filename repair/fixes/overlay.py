"""The checkpoint's tensors as they will be: the stored bytes with all planned ones over them.

Fixes read and write through it, one after another, so that a fix sees what those before it planned, and what they
planned together comes out as disjoint patches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from auditor.finding import Safety
from auditor.tensorref import TensorRef
from repair.content import Content, Mapped, Spool, Stored, length_of, piece_of
from repair.frame import through

STEP = 1 << 20  # bytes of one patch at most
HELD = 1 << 16  # longer ones wait in a scratch file


@dataclass(slots=True)
class Segment:
    """Planned bytes from byte ``at`` of a tensor on; ``rule`` names all fixes that had a part in them, by +."""

    at: int
    new: Content
    rule: str
    reason: str
    safety: Safety

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.at + length_of(self.new)

    def part(self, low: int, high: int) -> bytes:
        """The planned bytes of [low, high), counted in the tensor."""
        return piece_of(self.new, low - self.at, high - low)

    def cut(self, low: int, high: int) -> Segment:
        """The part [low, high) of it."""
        return Segment(low, self.part(low, high), self.rule, self.reason, self.safety)


class _Track:
    """The segments of one tensor: ascending, disjoint."""

    def __init__(self, ref: TensorRef) -> None:
        self.ref = ref
        self.starts: list[int] = []
        self.segments: list[Segment] = []

    def over(self, at: int, end: int) -> slice:
        """The segments that overlap [at, end)."""
        low = bisect_right(self.starts, at)
        if low and self.segments[low - 1].end > at:
            low -= 1
        return slice(low, bisect_left(self.starts, end))

    def put(self, new: Segment) -> None:
        last = self.segments[-1] if self.segments else None
        if last is not None and new.at >= last.end:
            alike = (last.rule, last.reason, last.safety) == (new.rule, new.reason, new.safety)
            short = isinstance(last.new, bytes) and isinstance(new.new, bytes)
            if new.at == last.end and alike and short and new.end - last.at <= HELD:
                last.new = last.part(last.at, last.end) + new.part(new.at, new.end)
                return
            self.starts.append(new.at)
            self.segments.append(new)
            return
        where = self.over(new.at, new.end)
        pieces = _compose(self.segments[where], new)
        self.segments[where] = pieces
        self.starts[where] = [piece.at for piece in pieces]


def _compose(old: list[Segment], new: Segment) -> list[Segment]:
    """The new segment over old ones: what sticks out of them stays, what both wrote carries both names."""
    pieces: list[Segment] = []
    rules: list[str] = []
    reasons: list[str] = []
    safety = new.safety
    for segment in old:
        if segment.rule not in (new.rule, *rules):
            rules.append(segment.rule)
            reasons.append(segment.reason)
        safety = max(safety, segment.safety)
    joint = Segment(new.at, new.new, "+".join([*rules, new.rule]), "; ".join([*reasons, new.reason]), safety)
    first, last = (old[0], old[-1]) if old else (None, None)
    if first is not None and first.at < new.at:
        pieces.append(first.cut(first.at, new.at))
    pieces.append(joint)
    if last is not None and last.end > new.end:
        pieces.append(last.cut(new.end, last.end))
    return pieces


class _Tensor(NamedTuple):
    """The stored bytes of one tensor, to be read at offsets."""

    stored: Callable[[TensorRef, int, int], bytes]
    ref: TensorRef

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``."""
        return self.stored(self.ref, offset, length)


class Overlay:
    """Planned bytes by tensor.  ``stored(ref, at, length)`` reads what the files hold."""

    def __init__(self, stored: Callable[[TensorRef, int, int], bytes]) -> None:
        self._stored = stored
        self._tracks: dict[str, _Track] = {}
        self._spool: Spool | None = None

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """Bytes of a tensor as they will be."""
        raw = self._stored(ref, at, length)
        track = self._tracks.get(ref.name)
        if track is None:
            return raw
        buffer = bytearray(raw)
        for segment in track.segments[track.over(at, at + length)]:
            low, high = max(at, segment.at), min(at + length, segment.end)
            buffer[low - at : high - at] = segment.part(low, high)
        return bytes(buffer)

    def put(self, ref: TensorRef, at: int, new: bytes, rule: str, reason: str, safety: Safety) -> None:
        """Plan new bytes; over earlier plans they win."""
        track = self._tracks.setdefault(ref.name, _Track(ref))
        for low in range(0, len(new), STEP):
            track.put(Segment(at + low, self._kept(new[low : low + STEP]), rule, reason, safety))

    def rescale(
        self, ref: TensorRef, at: int, length: int, table: bytes, rule: str, reason: str, safety: Safety
    ) -> None:
        """Plan for each byte, as it will be, its entry in a table; at most STEP of them.

        Where nothing else is planned the table stands for the bytes.
        """
        track = self._tracks.setdefault(ref.name, _Track(ref))
        if track.segments[track.over(at, at + length)]:
            self.put(ref, at, through(table, self.read(ref, at, length)), rule, reason, safety)
        else:
            track.put(Segment(at, self._table(ref, at, length, table), rule, reason, safety))

    def _table(self, ref: TensorRef, at: int, length: int, table: bytes) -> Mapped:
        return Mapped(Stored(_Tensor(self._stored, ref), at, length), table)

    def _kept(self, new: bytes) -> Content:
        if len(new) <= HELD:
            return new
        if self._spool is None:
            self._spool = Spool()
        return self._spool.add(new)

    def close(self) -> None:
        """Give the scratch file back; the plan can no longer be carried out."""
        if self._spool is not None:
            self._spool.close()

    def touched(self, ref: TensorRef) -> bool:
        """Whether anything is planned for the tensor."""
        return ref.name in self._tracks

    def changes(self) -> Iterator[tuple[TensorRef, Segment, bytes]]:
        """(tensor, segment, the stored bytes it replaces) of everything that differs, by file and offset.

        Bytes that stay the same are cut off at both ends of a segment.
        """
        for track in sorted(self._tracks.values(), key=lambda t: (t.ref.shard, t.ref.start)):
            for segment in track.segments:
                old = self._stored(track.ref, segment.at, segment.end - segment.at)
                low, high = _unlike(old, segment.new)
                if low == 0 and high == len(old):
                    yield track.ref, segment, old
                elif low < high:
                    content: Content = segment.new
                    if isinstance(content, Mapped):
                        content = self._table(track.ref, segment.at + low, high - low, content.table)
                    else:
                        content = self._kept(segment.part(segment.at + low, segment.at + high))
                    part = Segment(segment.at + low, content, segment.rule, segment.reason, segment.safety)
                    yield track.ref, part, old[low:high]


def _unlike(old: bytes, new: Content) -> tuple[int, int]:
    """The range outside of which both are equal; empty when they are equal throughout."""
    if isinstance(new, Mapped) and all(new.table[byte] != byte for byte in (old[0], old[-1])):
        return 0, len(old)
    later = piece_of(new, 0, len(old))
    if old == later:
        return 0, 0
    low, high = 0, len(old)
    while old[low] == later[low]:
        low += 1
    while old[high - 1] == later[high - 1]:
        high -= 1
    return low, high
