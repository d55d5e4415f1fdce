"""What a fix says: the bytes it would write, how safe that is, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from auditor.finding import Safety
from auditor.tensorref import TensorRef
from repair.content import Content
from repair.effect import Effect


class Edit(NamedTuple):
    """New bytes of a stored tensor, from byte ``at`` of it on."""

    ref: TensorRef
    at: int
    new: bytes


class Rescale(NamedTuple):
    """Bytes of a stored tensor, each of which becomes its entry in a table of 256."""

    ref: TensorRef
    at: int
    length: int
    table: bytes


class TextEdit(NamedTuple):
    """New content of a small text file of the checkpoint, whole; the rest is filled in when it is accepted."""

    file: str
    new: bytes
    rule: str = ""
    reason: str = ""
    safety: Safety = Safety.EXACT


class NewTensor(NamedTuple):
    """A tensor of another dtype, shape or size than is stored, or one that is not stored at all.

    ``like``: the stored tensor that it replaces; or, with ``beside``, next to which it is added.  ``lazy``: its bytes,
    in place of ``raw``, of one that may be large.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: bytes
    like: TensorRef
    beside: bool = False
    lazy: Content | None = None

    @property
    def content(self) -> Content:
        """Its bytes."""
        return self.raw if self.lazy is None else self.lazy


Change = Edit | Rescale | TextEdit | NewTensor


class Proposal(NamedTuple):
    """A repair of one finding, or of a part of it.

    ``rule`` and ``tensor`` are the finding's; ``reason`` says why these bytes; ``places`` counts the elements that are
    mended; ``change`` is old -> new in short.  ``changes`` may be an iterator, taken only when the risk is accepted.
    ``layers``: names of the layers that it touches.  ``effects`` are known; ``measure`` computes more of them
    from the bytes as they are before ``changes``, and is called only when the risk is accepted.
    """

    rule: str
    tensor: str
    safety: Safety
    reason: str
    places: int
    change: str
    changes: Iterable[Change]
    layers: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    group: str = ""  # label of the fused set, where the repair concerns one
    measure: Callable[[], tuple[Effect, ...]] | None = None


class Left(NamedTuple):
    """A finding, or a part of it, that is not mended, and why."""

    rule: str
    tensor: str
    reason: str
    places: int = 1
