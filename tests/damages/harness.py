"""What exporters and transports do to a checkpoint, and what only looks like it.

A damage changes a `Model` in place and says which rule must speak about which tensor, and where; an oddity changes it
into another legal checkpoint.  Choices (which layer, which block, which byte) are left to ``pick``, so that a test can
draw them.  Rows D01 to D39 are those of the list of known defects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from auditor.audit import Depth
from tests.encode import Made
from tests.forge import Model
from tests.raw import WIDTH, raw

T = TypeVar("T")


class Pick(Protocol):
    """Chooses one of several possibilities."""

    def __call__(self, options: Sequence[T], /) -> T: ...


@dataclass
class Done:
    """What must be said of a damaged checkpoint: (code, tensor) for every warning and error, and no other.

    The tensor "*" stands for any: which layer stands for all depends on the order in the files.

    ``places``: flat element indices that a finding must name (the first eight of them).
    """

    expected: set[tuple[str, str]] = field(default_factory=set)
    places: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def say(self, code: str, tensor: str, flats: Sequence[int] | None = None) -> Done:
        """Add one expectation."""
        self.expected.add((code, tensor))
        if flats is not None:
            self.places[code, tensor] = sorted(set(flats))
        return self


@dataclass(frozen=True)
class Damage:
    """``fits`` gives the layers in which it can occur (none: not in this layout); ``depth``: where it shows."""

    name: str
    depth: Depth
    fits: Callable[[Model], Sequence[Made]]
    do: Callable[[Model, Made, Pick], Done]


Fits = Callable[[Model], Sequence[Made]]
Do = Callable[[Model, Made, Pick], Done]
DAMAGES: dict[str, Damage] = {}
ODDITIES: dict[str, Damage] = {}


def _register(table: dict[str, Damage], name: str, depth: Depth, fits: Fits) -> Callable[[Do], Do]:
    def add(do: Do) -> Do:
        assert name not in table
        table[name] = Damage(name, depth, fits, do)
        return do

    return add


def damage(name: str, fits: Fits, depth: Depth = Depth.SCALES) -> Callable[[Do], Do]:
    """Register a damage."""
    return _register(DAMAGES, name, depth, fits)


def oddity(name: str, fits: Fits) -> Callable[[Do], Do]:
    """Register an oddity."""
    return _register(ODDITIES, name, Depth.SCALES, fits)


def kind(*kinds: str, needs: str = "") -> Callable[[Model], Sequence[Made]]:
    """The layers of these kinds that have a part (``needs``: an attribute of Made)."""
    return lambda model: [x for x in model.layers if x.kind in kinds and (not needs or getattr(x, needs))]


def first(model: Model) -> Sequence[Made]:
    """One layer, for damage to the checkpoint as a whole."""
    return [x for x in model.layers if x.kind != "int"][:1]


def flats(pick: Pick, size: int, most: int = 12) -> list[int]:
    """Some flat indices: an end, or a few anywhere."""
    count = pick(range(1, most + 1))
    return sorted({pick((0, size - 1, *range(size))) for _ in range(count)})


def set_block(model: Model, layer: Made, flat: int, byte: int | Sequence[int]) -> None:
    """Write the packed codes under one block scale: one byte throughout, or a byte for each."""
    places = layer.block_bytes(flat, model.tensors[layer.scales].shape)
    for i, at in enumerate(places):
        model.poke(layer.codes, at, bytes([byte if isinstance(byte, int) else byte[i]]))


def set_scale(model: Model, name: str, flat: int, byte: int) -> None:
    """Write one byte-sized scale."""
    model.poke(name, flat, bytes([byte]))


def set_float(model: Model, name: str, flat: int, value: float) -> None:
    """Write one value of a float tensor."""
    dtype = model.tensors[name].dtype
    model.poke(name, flat * WIDTH[dtype], raw(dtype, np.float64(value) if dtype == "F64" else np.float32(value)).data)


def value_of(model: Model, name: str, flat: int = 0) -> float:
    """One value of a float tensor."""
    return float(model.tensors[name].values().reshape(-1)[flat])


def members(model: Model, layer: Made) -> list[Made]:
    """The layers of the fused set, or the layer alone."""
    return [model.layer(name) for name in layer.fused] or [layer]


def fused_first(model: Model, layer: Made, part: str) -> str | None:
    """The tensor on which a finding about the fused set lies, None where there is no set."""
    names = [getattr(m, part) for m in members(model, layer)]
    names = [name for name in names if name in model.tensors]
    return names[0] if len(names) > 1 else None


LIVE = (0x12, 0x05, 0x77, 0x71, 0x9A, 0x70, 0x01, 0x10)
ZERO = (0x00, 0x88, 0x08, 0x80)
BAD = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), -1.5, -1e-30)


def saturate(model: Model, layer: Made, top: int, near: int) -> list[int]:
    """Exactly ``top`` scales of 0x7E and ``near`` of 0x7A to 0x7D; the indices of the former."""
    size = model.tensors[layer.scales].size
    scales = np.minimum(model.tensors[layer.scales].array().reshape(-1), 0x79)
    hit = [i * size // (top + near) for i in range(top + near)]
    scales[hit[:top]] = 0x7E
    scales[hit[top:]] = np.resize(np.arange(0x7A, 0x7E), near)
    model.tensors[layer.scales] = model.tensors[layer.scales]._replace(data=scales.tobytes())
    return hit[:top]


def is_gate(layer: Made) -> bool:
    """Whether this is the gate of a gate/up pair."""
    return layer.name.endswith((".gate_proj", ".w1")) and len(layer.fused) == 2


def kv_scales(model: Model) -> list[str]:
    """The names of the KV-cache scales."""
    return sorted(n for n in model.tensors if n.endswith((".k_scale", ".v_scale", ".kv_scale", "_cache.scale")))


def plain_head(model: Model) -> bool:
    """Whether there is an output head that is not quantised."""
    return bool(model.config) and "lm_head.weight" in model.tensors and "lm_head" not in {x.name for x in model.layers}
