"""NVFP4 matrices between modelopt and compressed-tensors: codes and block scales as they are, globals reciprocal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.declaration import Activation, Algorithm, Family
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from quant.errors import RepairError
from quant.reciprocal import agreement, inverts, scale_counts
from quant.scheme import GlobalScale
from repair.make.assemble import Remade
from repair.make.convert_scalars import activation, consumed, le_bytes, number, stored_input, turned
from repair.make.convertrow import Converted, ConvertRow, Into
from repair.make.layouts import NVFP4
from repair.make.shard import Copy, Fill, Piece
from repair.restore_pieces import read_array

FORMATS = frozenset({"modelopt-nvfp4", "modelopt-w4a16", "ct-nvfp4"})
_STEP = 1 << 22  # bytes of scales in memory at once


def algorithm(static: bool) -> Algorithm:
    """What is declared for NVFP4 weights."""
    way = Activation.STATIC if static else Activation.NONE
    return Algorithm("NVFP4" if static else "W4A16_NVFP4", Family.NVFP4, way, 16)


def convert(layer: QuantizedLayer, into: Into) -> Converted:
    """A matrix [N, K / 2]; RepairError when its shapes do not fit, or a global scale has no reciprocal."""
    static = activation(layer, into) is not Activation.NONE
    target, module, home = NVFP4[into.layout], layer.module, layer.codes.shard
    divides = layer.format.global_scale is GlobalScale.DIVIDE
    if divides is target.divides:
        kept = Remade(home, frozenset(), (), (), (module,), algorithm(static))
        return Converted(kept, lambda: iter([]))
    if len(layer.codes.shape) != 2 or layer.geometry() is None or layer.global_scale is None:
        shapes = f"{list(layer.codes.shape)} and {list(layer.scales.shape)}"
        raise RepairError(f"{home}: {layer.codes.name}: codes and scales of shapes {shapes} do not fit together")
    ref, (given, dropped) = layer.global_scale, stored_input(layer, static)
    old = number(into.sources, ref)
    new = turned(old, ref)
    lone = {Role.GLOBAL: new}
    if given is not None:
        lone[Role.INPUT] = turned(number(into.sources, given), given)
    codes, scales = target.codes(module, layer.codes.shape), target.scales(module, layer.scales.shape)
    compared = agreement(new, old) if divides else agreement(old, new)

    def row(counts: np.ndarray) -> ConvertRow:
        exact, ulps, deviation = compared.over(counts)
        return ConvertRow(layer.codes.name, int(counts.sum()), exact, ulps, deviation, inverts(old, new), dropped)

    def pieces() -> Iterator[Piece]:
        yield Copy(codes.name, 0, into.sources, layer.codes, 0, layer.codes.nbytes)
        counts = np.zeros(128, np.int64)
        for at, raw in stored_scales(layer, into):
            counts += scale_counts(raw)
            yield Fill(scales.name, at, raw.data)
        for role, value in lone.items():
            yield Fill(target.name(role, module), 0, le_bytes(value))
        yield row(counts)

    def told() -> Iterator[ConvertRow]:
        counts = np.zeros(128, np.int64)
        for _, raw in stored_scales(layer, into):
            counts += scale_counts(raw)
        yield row(counts)

    entries = (codes, scales, *(target.lone(role, module) for role in lone))
    return Converted(Remade(home, consumed(layer), entries, (pieces,), (module,), algorithm(static)), told)


def stored_scales(layer: QuantizedLayer, into: Into) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, bytes) of the block scales, part by part."""
    for at in range(0, layer.scales.nbytes, _STEP):
        yield at, read_array(into.sources, layer.scales, at, min(_STEP, layer.scales.nbytes - at))
