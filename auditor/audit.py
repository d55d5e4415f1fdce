"""The result of a scan."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from auditor.finding import Finding, Severity, Skipped


class Depth(enum.IntEnum):
    """How much of a checkpoint is read."""

    HEADERS = 0  # no tensor data
    SCALARS = 1  # per-tensor scales
    SCALES = 2  # all scales; codes only where a scale asks for them
    FULL = 3  # every byte

    @property
    def label(self) -> str:
        """Lower-case name, as written on the command line."""
        return self.name.lower()


class TensorRow(NamedTuple):
    """What a report says of one tensor."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    layer: str  # module it belongs to, "" when no format claims it
    format: str
    role: str  # codes, scales, global, input, ...; "" when no format claims it
    read: bool  # whether its bytes were looked at


class LayerRow(NamedTuple):
    """Scale statistics of one quantised layer; None where the depth did not reach them.

    ``scale_min``/``scale_max``: smallest and largest positive finite block scale, as values;
    ``octaves``: log2 of their ratio; the counts are of block scales.
    """

    layer: str
    format: str
    shard: str
    codes: str
    rows: int
    columns: int
    global_scale: float | None
    input_scale: float | None
    blocks: int | None
    scale_min: float | None
    scale_max: float | None
    zeros: int | None
    nan: int | None
    saturated: int | None
    subnormal: int | None
    octaves: float | None


class InternalError(NamedTuple):
    """A rule that raised: a fault of this tool, reported as such."""

    rule: str
    where: str
    error: str


@dataclass(frozen=True)
class Audit:
    """Everything a scan found, and what it did not look at.

    ``findings`` are sorted: severest first, then by code, then by tensor.  ``skipped`` names tensors, and files of
    which nothing is known.  A tensor is checked (its values were read), unread or skipped: together ``tensor_count``.
    ``bytes_held`` and ``bytes_read`` are of the shards, and count a byte once.
    """

    checkpoint: str
    depth: Depth
    formats: tuple[str, ...]
    shards: tuple[str, ...]
    bytes_held: int
    bytes_read: int
    tensor_count: int
    checked: int
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    errors: tuple[InternalError, ...]
    unread: Counter[str] = field(default_factory=Counter)  # reason -> tensors this depth leaves alone
    tensors: Sequence[TensorRow] = ()
    layers: Sequence[LayerRow] = ()
    declared: str = ""  # what the configuration says, in one line

    @cached_property
    def worst(self) -> Severity | None:
        """Severity of the severest finding, None when there is none."""
        return max((f.severity for f in self.findings), default=None)

    @property
    def tensors_skipped(self) -> int:
        """How many tensors are skipped; files that are skipped do not count."""
        return self.tensor_count - self.checked - sum(self.unread.values())

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(f.severity is severity for f in self.findings)
