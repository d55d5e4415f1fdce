"""What there is to say of a weight that was brought into another layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from auditor.declared import Declared
from auditor.jsonfile import Json
from auditor.tensorref import TensorRef
from repair.make.assemble import Remade
from repair.make.layouts import Layout
from repair.make.shard import Row
from repair.make.sources import Sources


@dataclass(frozen=True)
class ConvertRow(Row):
    """One weight.  ``blocks``: its scales; ``exact``: those under which every weight is the same float32 number.

    ``ulps`` and ``deviation``: the most that a weight differs, in steps of float32 and relative to it.
    ``inverts``: the reciprocal of the new global scale is the old one; loaders that multiply by it see no difference.
    ``dropped``: the tensor that the new layout has no place for, "" for none.
    """

    blocks: int
    exact: int
    ulps: int = 0
    deviation: float = 0.0
    inverts: bool = True
    dropped: str = ""


@dataclass(frozen=True)
class Into:
    """Where to, and from what.  ``tensors``: those of the source, by name."""

    layout: Layout
    declared: Declared
    sources: Sources
    tensors: Mapping[str, TensorRef]
    config: Json


@dataclass(frozen=True)
class Converted:
    """What becomes of one weight; ``rows``: what there is to say of it, told without writing."""

    remade: Remade
    rows: Callable[[], Iterator[ConvertRow]]
