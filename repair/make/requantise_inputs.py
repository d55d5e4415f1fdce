"""Input scales for weights that are quantised without running the model: none, one, or a calibrated checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from auditor.checkpoint import open_checkpoint
from auditor.layer import QuantizedLayer, recognise
from auditor.peers import amax_of, input_faulty
from quant.errors import RepairError
from quant.nvfp4 import weight_global_scale, weight_scale_2
from quant.scheme import GlobalScale
from repair.make.experts import DOWN, GATE_UP
from repair.make.layouts import NVFP4, Layout
from repair.make.requantise_weights import Found, Weight
from repair.restore_pieces import Files
from repair.source_codes import floats


def ones(found: Found) -> dict[str, np.float32]:
    """1.0 for every module: the same number in both conventions, inputs up to 2688."""
    return {weight.name: np.float32(1) for weight in found.weights}


def calibrated(found: Found, path: str | Path, layout: Layout) -> dict[str, np.float32]:
    """The input scales of another checkpoint of the same model, whatever its layout, as ``layout`` stores them.

    Members of a fused set share the largest amax among them.  RepairError, naming the module, when the checkpoint has
    no usable input scale for it.
    """
    checkpoint = open_checkpoint(path)
    layers = {layer.name: layer for layer in recognise(checkpoint.tensors.values()).layers}
    made: dict[str, np.float32] = {}
    with Files(checkpoint) as files:
        for members in found.sets:
            some = [_layer(weight, layers, checkpoint.name) for weight in members]
            stored = _shared([(layer, value) for layer in some for value in _values(layer, files)], layout)
            made.update((weight.name, stored) for weight in members)
    return made


def _shared(found: list[tuple[QuantizedLayer, float]], layout: Layout) -> np.float32:
    """The scale of the largest amax; where the layout stores it as they do, one of their own numbers."""
    wanted = NVFP4[layout].format
    layer, value = max(found, key=lambda one: amax_of(*one))
    own = layer.format
    if (own.global_scale, own.amax_unit) == (wanted.global_scale, wanted.amax_unit):
        return np.float32(value)
    made = (weight_global_scale if wanted.global_scale is GlobalScale.DIVIDE else weight_scale_2)(amax_of(layer, value))
    return np.float32(made.reshape(()))


def _layer(weight: Weight, layers: Mapping[str, QuantizedLayer], where: str) -> QuantizedLayer:
    """The layer of the same name; of an expert also the fused tensor that holds it, or the first expert's."""
    for name in _names(weight):
        layer = layers.get(name)
        if layer is not None and layer.input_scale is not None:
            return layer
    raise RepairError(
        f"{where}: has no input scale for {weight.name}; take one that was calibrated, or --activations one"
    )


def _names(weight: Weight) -> list[str]:
    head, _, leaf = weight.name.rpartition(".")
    module, _, number = head.rpartition(".")
    if number.isdecimal() and module.endswith("experts"):
        return [weight.name, f"{module}.{DOWN if leaf in (DOWN, 'w2') else GATE_UP}"]
    return [weight.name]


def _values(layer: QuantizedLayer, files: Files) -> list[float]:
    ref = layer.input_scale
    assert ref is not None
    raw = np.frombuffer(files.read(ref, 0, ref.nbytes), np.uint8).reshape(1, -1)
    values = [float(value) for value in floats(raw, ref).reshape(-1)]
    if not values or any(input_faulty(value) for value in values):
        raise RepairError(
            f"{ref.shard}: {ref.name}: {values[:1]} is no usable input scale; repair that checkpoint first"
        )
    return values
