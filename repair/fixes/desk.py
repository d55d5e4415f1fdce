"""What fixes work with: the evidence of a scan, the overlay of planned bytes, and what the user allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from auditor.context import Context
from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from auditor.probes import decode_floats
from auditor.scalars import storable
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.activation import Policy
from quant.codes import E4M3, E8M0
from quant.floats import narrow_bf16
from repair.effect import Tally
from repair.fixes.overlay import Overlay
from repair.fixes.proposal import NewTensor, Proposal, TextEdit


class Options(NamedTuple):
    """How far repairs may go.  ``include``: codes of repairs that are made only when they are asked for by name."""

    risk: Safety = Safety.EXACT
    policy: Policy = Policy.PEER_MAX
    floor: float | None = None
    include: frozenset[str] = frozenset()
    rewrite: bool = False  # shards may be written anew, into another folder


@dataclass
class Desk:
    """One plan in the making."""

    ctx: Context
    options: Options
    findings: tuple[Finding, ...] = ()
    done: set[tuple[str, str]] = field(default_factory=set)  # (fix, layer) that need no second look
    tally: Tally = field(default_factory=Tally)  # sums codes to predict errors
    texts: dict[str, TextEdit] = field(default_factory=dict)  # small files as they will be

    tensors: dict[str, NewTensor] = field(default_factory=dict)  # of shards that are written anew

    def __post_init__(self) -> None:
        """Begin with nothing planned."""
        self.overlay = Overlay(self.ctx.read)
        self._layers = {layer.name: layer for layer in self.ctx.layers}

    def layer(self, finding: Finding) -> QuantizedLayer | None:
        """The layer that a finding is about."""
        known = self.ctx.recognised.roles.get(finding.tensor)
        return known[0] if known else self._layers.get(finding.layer)

    def ref(self, name: str) -> TensorRef | None:
        """A stored tensor by name."""
        return self.ctx.checkpoint.tensors.get(name)

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """Bytes of a tensor as they will be."""
        return self.overlay.read(ref, at, length)

    def raw(self, ref: TensorRef) -> bytes:
        """All bytes of a small tensor as they will be."""
        return self.overlay.read(ref, 0, ref.nbytes)

    def fetch(self, ref: TensorRef) -> Callable[[int, int], bytes]:
        """What gives ``length`` bytes of a tensor from byte ``at``, as they will be when it is called."""
        return lambda at, length: self.read(ref, at, length)

    def current(self, ref: TensorRef) -> NewTensor:
        """A small tensor as it will be, its header entry included."""
        return self.tensors.get(ref.name) or NewTensor(ref.name, ref.dtype, ref.shape, self.raw(ref), ref)

    def text(self, file: str) -> str:
        """A small text file as it will be, its byte order mark included; "" when it is not there."""
        if file in self.texts:
            return self.texts[file].new.decode()
        path = self.ctx.checkpoint.root / file
        return path.read_bytes().decode() if path.is_file() else ""

    def rewrite(self, edit: TextEdit, by: Proposal) -> None:
        """Plan the new content of a small file; several repairs of one file carry all their rules."""
        before = self.texts.get(edit.file)
        rule, reason, safety = by.rule, by.reason, by.safety
        if before is not None:
            rule = before.rule if by.rule in before.rule.split("+") else f"{before.rule}+{by.rule}"
            reason = before.reason if by.reason in before.reason else f"{before.reason}; {by.reason}"
            safety = max(safety, before.safety)
        self.texts[edit.file] = TextEdit(edit.file, edit.new, rule, reason, safety)

    def values(self, ref: TensorRef) -> list[float]:
        """All values of a small tensor as they will be: float, E4M3 or E8M0 dtype.  Not to be changed by the caller."""
        known = None if self.overlay.touched(ref) else self.ctx.values(ref)
        if known is not None:
            return known
        raw = self.raw(ref)
        if ref.dtype in FLOAT_DTYPES:
            return [float(v) for v in decode_floats(raw, ref.dtype)]
        table = E4M3 if ref.dtype == "F8_E4M3" else E8M0
        return [float(table.values[code]) for code in raw]

    def values_of(self, ref: TensorRef | None) -> list[float] | None:
        """The same of a part that a layer may lack."""
        return self.values(ref) if ref is not None else None


def scale_bytes(value: float, dtype: str) -> bytes | str:
    """A scale in a float dtype, rounded to nearest even; or why it cannot be stored."""
    if dtype not in FLOAT_DTYPES:
        return f"stored as {dtype}, which is not a float"
    raw = float_bytes(value, dtype) if storable(value, dtype) else None
    return raw or f"{value:g} cannot be stored as {dtype}: it would become 0 or infinite"


def float_bytes(value: float, dtype: str) -> bytes | None:
    """A value in a float dtype, rounded to nearest even; None for a dtype that is not float."""
    if dtype == "F32":
        return np.float32(value).tobytes()
    if dtype == "F64":
        return np.float64(value).tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return np.float16(value).tobytes()
    if dtype == "BF16":
        return narrow_bf16(np.asarray(np.float32(value))).astype("<u2").tobytes()
    return None


def pieces(total: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, length) of pieces of at most ``step`` that cover ``total``."""
    for at in range(0, total, step):
        yield at, min(step, total - at)
