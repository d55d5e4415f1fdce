"""Activation scales of a new checkpoint: none, exactly 1, or those of another checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from auditor.checkpoint import Checkpoint
from auditor.declaration import Activation
from auditor.groups import expert_key
from auditor.layer import QuantizedLayer, recognise
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from quant.scheme import GlobalScale
from repair.make.assemble import served
from repair.make.sources import Sources
from repair.restore_pieces import read_array
from repair.source_codes import WORDS, floats

_AMAX_UNIT = 2688.0  # of NVFP4: the scale is amax / (6 · 448)
_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "w13", "w3": "w13"}


class Activations(Protocol):
    """Where activation scales come from.  ``label``: as the option was given."""

    label: str
    activation: Activation

    def scale(self, modules: Sequence[str], divides: bool) -> np.float32 | None:
        """One scale that serves all ``modules``, as a divisor where ``divides``; None when there is to be none.

        RepairError, naming the module, when one has none.
        """


class NoScales:
    """Inputs are not quantised: W4A16."""

    label, activation = "none", Activation.NONE

    def scale(self, modules: Sequence[str], divides: bool) -> np.float32 | None:
        """None."""
        return None


class Ones:
    """A scale of exactly 1, which is its own reciprocal: an input of 2688 is the largest that is not clipped."""

    label, activation = "one", Activation.STATIC

    def scale(self, modules: Sequence[str], divides: bool) -> np.float32 | None:
        """1."""
        return np.float32(1)


class _Stored(NamedTuple):
    ref: TensorRef
    divides: bool
    at: int  # element


class Taken:
    """The scales of the same modules in another NVFP4 checkpoint, whatever its layout."""

    activation = Activation.STATIC

    def __init__(self, checkpoint: Checkpoint, sources: Sources) -> None:
        """Nothing is read yet.  ``sources``: of the same checkpoint."""
        self.label = f"from {checkpoint.root}"
        self._name, self._sources = checkpoint.name, sources
        self._found: dict[str, QuantizedLayer] = {}
        for layer in recognise(served(checkpoint).values()).layers:
            if layer.input_scale is not None and layer.format.amax_unit == _AMAX_UNIT:
                self._found[layer.name] = layer

    def scale(self, modules: Sequence[str], divides: bool) -> np.float32 | None:
        """The scale that covers the widest inputs among the modules; its bits are kept where the conventions agree."""
        stored = dict.fromkeys(self._stored(module) for module in modules)
        values = [(self._read(one), one.divides) for one in stored]
        value, divided = max(values, key=lambda one: 1 / float(one[0]) if one[1] else float(one[0]))
        with np.errstate(all="ignore"):
            made = value if divided == divides else np.float32(1) / value
        if not np.isfinite(made) or made < np.finfo(np.float32).tiny:
            raise RepairError(
                f"{self._name}: {modules[0]}: the reciprocal of its activation scale {value} is no float32"
            )
        return np.float32(made)

    def _stored(self, module: str) -> _Stored:
        for name, expert in _names(module):
            layer = self._found.get(name)
            ref = layer.input_scale if layer else None
            if layer and ref and (ref.size == 1 or (expert is not None and expert < ref.size)):
                divides = layer.format.global_scale is GlobalScale.DIVIDE
                return _Stored(ref, divides, 0 if ref.size == 1 else expert or 0)
        raise RepairError(f"{self._name}: has no NVFP4 activation scale for {module}")

    def _read(self, one: _Stored) -> np.float32:
        ref = one.ref
        if ref.dtype not in WORDS:
            raise RepairError(f"{ref.shard}: {ref.name}: an activation scale of dtype {ref.dtype} is not read")
        raw = read_array(self._sources, ref, one.at * ref.itemsize, ref.itemsize).reshape(1, -1)
        value = np.float32(floats(raw, ref).reshape(()))
        if not np.isfinite(value) or value < np.finfo(np.float32).tiny:
            raise RepairError(f"{ref.shard}: {ref.name}: {value} is no usable activation scale")
        return value


def _names(module: str) -> Iterable[tuple[str, int | None]]:
    """Under which names another checkpoint may hold the module, and which expert of it that is."""
    yield module, None
    key = expert_key(module)
    if key:
        parent, leaf = key
        expert = int(module[len(parent) + 1 :].partition(".")[0])
        yield f"{parent}.{_FUSED.get(leaf, leaf)}", expert
