"""The lone numbers of a layer in another layout: the same, or their reciprocals, and what they mean for the weights."""

from __future__ import annotations

import numpy as np

from auditor.declaration import Activation
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.errors import NumericError, RepairError
from quant.reciprocal import reciprocal
from repair.make.convertrow import Into
from repair.restore_pieces import Reader, read_array
from repair.source_codes import floats


def number(reader: Reader, ref: TensorRef, expert: int = 0, experts: int = 1) -> np.float32:
    """The lone number of a tensor, or of one of its experts; RepairError where there is another count of them."""
    if ref.size not in (1, experts):
        raise RepairError(f"{ref.shard}: {ref.name}: {ref.size} numbers where one is due")
    at = expert * ref.itemsize if ref.size > 1 else 0
    return np.float32(floats(read_array(reader, ref, at, ref.itemsize).reshape(1, -1), ref).item())


def turned(value: np.float32, ref: TensorRef) -> np.float32:
    """Its reciprocal; RepairError, naming the tensor, where it has none."""
    try:
        return reciprocal(value)
    except NumericError as error:
        raise RepairError(f"{ref.shard}: {ref.name}: {error}; mend it first: audit repair") from None


def activation(layer: QuantizedLayer, into: Into, otherwise: Activation = Activation.NONE) -> Activation:
    """How the inputs of a layer are quantised: as declared; by what is stored where that says nothing."""
    declared = into.declared.activation_for(layer.name)
    if declared is not Activation.UNKNOWN:
        return declared
    return Activation.STATIC if layer.get(Role.INPUT) is not None else otherwise


def stored_input(layer: QuantizedLayer, static: bool) -> tuple[TensorRef | None, str]:
    """The activation scale to convert, and what is dropped: one that loaders of weights alone do not read."""
    ref = layer.get(Role.INPUT)
    if ref is None or static:
        return ref, ""
    return None, ref.name


def consumed(layer: QuantizedLayer) -> frozenset[str]:
    """All tensors of a layer."""
    return frozenset(ref.name for ref in layer.parts.values())


def le_bytes(value: np.float32) -> bytes:
    """As a file holds it."""
    return np.asarray(value, "<f4").tobytes()
