"""What a scan says: findings, their places, and what could be done about them."""

from __future__ import annotations

import enum
from typing import NamedTuple

PLACES_KEPT = 8  # a finding counts everything and shows the first few
RELATED_KEPT = 64  # names of other tensors; a fused set has three, a declaration may concern thousands


class Severity(enum.IntEnum):
    """How bad a finding is for the person who serves the model."""

    INFO = 1  # looks odd, is legal
    WARNING = 2  # numbers may be wrong, or some loader refuses
    ERROR = 3  # output is NaN, garbage or silently wrong, or the file is broken

    @property
    def label(self) -> str:
        """Lower-case name, as written in every report."""
        return self.name.lower()


class Safety(enum.IntEnum):
    """How far a repair moves the dequantised weights; ascending risk."""

    EXACT = 0  # nothing that was finite changes, or the true value is known
    RESTORED = 1  # recomputed from the source checkpoint
    BOUNDED = 2  # moves by at most a stated error
    GUESS = 3  # information was lost

    @property
    def label(self) -> str:
        """Lower-case name, as written in every report."""
        return self.name.lower()


class Place(NamedTuple):
    """One damaged element: its index in the tensor, its absolute byte offset in the shard, its bytes."""

    index: tuple[int, ...]  # type: ignore[assignment]  # nobody misses a tuple's own method
    offset: int
    old: str  # hexadecimal, as stored: 0x7F for a byte, 0x00000000 for a little-endian float32's value


class Remedy(NamedTuple):
    """What `repair` could do about a finding: how safe it is, and in one line what it would write."""

    safety: Safety
    note: str


class Finding(NamedTuple):
    """One rule's verdict on one tensor (or one file); never holds tensors.

    ``tensor`` is the full name as stored, or a file name for findings about files.  ``related`` names the
    other members of a fused set (the first RELATED_KEPT of a larger company).  ``count`` counts all damaged
    elements, ``places`` shows the first PLACES_KEPT of them.  ``layer`` is the module the tensor belongs to,
    or "".
    """

    code: str
    title: str
    severity: Severity
    tensor: str
    shard: str
    message: str
    count: int = 1  # type: ignore[assignment]  # as above
    places: tuple[Place, ...] = ()
    related: tuple[str, ...] = ()
    fix: Remedy | None = None
    layer: str = ""


class Skipped(NamedTuple):
    """A tensor or file that could not be checked, and why.  Never silence."""

    tensor: str
    reason: str
