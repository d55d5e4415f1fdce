"""Healthy checkpoints of every layout, in memory, from random weights with correct arithmetic.

`make(layout)` gives a `Model`: tensors as bytes, the configuration an exporter would write, and what each quantised
layer consists of, said here and not asked of the tool.  `Model.write` puts it on disk in any number of shards.
The same name gives the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.encode import ENCODERS, Made
from tests.modelled import ARCHITECTURES, Architecture, Linear
from tests.raw import Raw, raw, shard_bytes

Json = dict[str, Any]


@dataclass
class Model:
    """A checkpoint in memory.  Tensors are immutable values: a copy may be damaged freely."""

    name: str
    tensors: dict[str, Raw]
    config: Json
    hf_quant: Json | None
    layers: tuple[Made, ...]

    def copy(self) -> Model:
        """The same checkpoint, to be damaged."""
        config, beside = json.loads(json.dumps([self.config, self.hf_quant]))
        return replace(self, tensors=dict(self.tensors), config=config, hf_quant=beside)

    def poke(self, name: str, at: int, new: bytes) -> bytes:
        """Write bytes into a tensor; returns what was there."""
        old = self.tensors[name].data[at : at + len(new)]
        self.tensors[name] = self.tensors[name].bytes_at(at, new)
        return old

    def fill(self, name: str, byte: int) -> None:
        """Every byte of a tensor becomes ``byte``."""
        self.tensors[name] = self.tensors[name]._replace(data=bytes([byte]) * len(self.tensors[name].data))

    def reshape(self, name: str, shape: tuple[int, ...]) -> None:
        """Another shape over the tensor's first bytes (repeated where there are too few)."""
        tensor = self.tensors[name]
        width = len(tensor.data) // max(tensor.size, 1)
        need = int(np.prod(shape, dtype=np.int64)) * width
        self.tensors[name] = Raw(tensor.dtype, shape, (tensor.data * (need // max(len(tensor.data), 1) + 1))[:need])

    def layer(self, name: str) -> Made:
        """The layer of this name."""
        return next(layer for layer in self.layers if layer.name == name)

    def quantization(self) -> Sequence[Json]:
        """The objects that declare the quantisation, to be changed together."""
        found = [self.config["quantization_config"]] if "quantization_config" in self.config else []
        return [*found, *([self.hf_quant["quantization"]] if self.hf_quant else [])]

    def write(self, root: Path, shards: int = 1) -> Path:
        """The folder, written; with several shards every layer's tensors are spread over them."""
        root.mkdir(parents=True, exist_ok=True)
        names = sorted(self.tensors)
        files = ["model.safetensors"]
        if shards > 1:
            files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        where = {name: files[i % len(files)] for i, name in enumerate(names)}
        for file in files:
            (root / file).write_bytes(shard_bytes({n: self.tensors[n] for n in names if where[n] == file}))
        if shards > 1:
            total = sum(len(tensor.data) for tensor in self.tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (root / "model.safetensors.index.json").write_text(json.dumps(index))
        if self.config:
            (root / "config.json").write_text(json.dumps(self.config))
        if self.hf_quant is not None:
            (root / "hf_quant_config.json").write_text(json.dumps(self.hf_quant))
        return root


@dataclass(frozen=True)
class Layout:
    """One row of the table of layouts: how weights are encoded and what is declared.

    ``encoder`` maps a kind of module ("attention", "mlp", "experts", "head") to an encoder's name; a module whose
    kind is missing stays BF16.  ``label``: what a scan calls the layout.
    """

    name: str
    labels: tuple[str, ...]
    architecture: str
    encoder: dict[str, str]
    declare: Callable[[Declaration], tuple[Json | None, Json | None]]
    kv: str = ""  # where the KV-cache scales hang
    configured: bool = True  # whether there is a config.json


@dataclass(frozen=True)
class Declaration:
    """What a configuration has to say: the layers by encoder, and what stays unquantised."""

    quantised: dict[str, str]
    plain: tuple[str, ...]
    kv: str


@cache
def make(name: str) -> Model:
    """The healthy checkpoint of a layout, by its name in LAYOUTS."""
    from tests.layouts import LAYOUTS

    layout = LAYOUTS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    arch = ARCHITECTURES[layout.architecture]
    tensors: dict[str, Raw] = {}
    layers: list[Made] = []
    quantised: dict[str, str] = {}
    amaxes, inputs = _shared(arch, layout, rng)
    for linear in arch.linears:
        encoder = layout.encoder.get(linear.kind)
        weight = _weight(name, linear)
        if encoder is None:
            tensors[linear.plain_name] = raw("BF16", weight)
            continue
        parts, made = ENCODERS[encoder](linear.name, weight, amaxes[linear.shared], inputs[linear.shared], linear)
        tensors.update(parts)
        layers.append(made)
        quantised[linear.name] = encoder
    for plain, shape in arch.plain:
        tensors[plain] = raw("BF16", rng.uniform(0.5, 1.5, shape).astype(np.float32))
    tensors.update(_kv(layout.kv, arch))
    plain_linears = (x.name for x in arch.linears if x.name not in quantised)
    told = Declaration(quantised, (*arch.unlisted, *plain_linears), layout.kv)
    declared, beside = layout.declare(told)
    config = dict(arch.config) if layout.configured else {}
    if declared is not None:
        config["quantization_config"] = declared
    return Model(name, tensors, config, beside, tuple(_grouped(layers, arch)))


def _weight(seed: str, linear: Linear) -> NDArray[np.float32]:
    """Normal weights with a few large ones, [.., N, K]; their scale differs from module to module."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}/{linear.name}".encode()))
    weight = rng.normal(0, rng.uniform(0.01, 0.05), linear.shape)
    return weight.astype(np.float32)


def _shared(
    arch: Architecture, layout: Layout, rng: np.random.Generator
) -> tuple[dict[str, np.float32], dict[str, np.float32]]:
    """By the name that fused siblings share: the largest weight of them all, and the activations' amax."""
    amaxes: dict[str, np.float32] = {}
    inputs: dict[str, np.float32] = {}
    for linear in arch.linears:
        top = np.float32(np.abs(_weight(layout.name, linear)).max())
        amaxes[linear.shared] = max(top, amaxes.get(linear.shared, np.float32(0)))
        inputs.setdefault(linear.shared, np.float32(rng.uniform(2, 4)))
    return amaxes, inputs


def _grouped(layers: Sequence[Made], arch: Architecture) -> list[Made]:
    """The layers with the names of their fused set and of their peers."""
    names = {layer.name for layer in layers}
    by_name = {linear.name: linear for linear in arch.linears}
    found = []
    for layer in layers:
        here = by_name[layer.name]
        fused = [x for x in arch.linears if x.shared == here.shared and x.name in names]
        fused.sort(key=lambda x: x.order)
        peers = [x.name for x in arch.linears if here.peers and x.peers == here.peers and x.name in names]
        group = tuple(x.name for x in fused) if len(fused) > 1 else ()
        found.append(replace(layer, fused=group, peers=tuple(peers)))
    return found


def _kv(where: str, arch: Architecture) -> dict[str, Raw]:
    """KV-cache scales of every attention module."""
    found: dict[str, Raw] = {}
    for number, attention in enumerate(arch.attentions):
        scale = 0.01 + 0.003 * number
        if where == "proj":
            for side in "kv":
                found[f"{attention}.{side}_proj.{side}_scale"] = raw("F32", np.float32(scale))
        elif where == "attention":
            for side in "kv":
                found[f"{attention}.{side}_scale"] = raw("BF16", np.float32(scale), (1,))
        elif where == "cache":
            for side in "kv":
                found[f"{attention}.{side}_cache.scale"] = raw("F32", np.float32(scale), (1,))
        elif where == "affine":
            for side in "kv":
                found[f"{attention}.{side}_proj.{side}_scale"] = raw("F32", np.float32(scale))
                found[f"{attention}.{side}_proj.{side}_bias"] = raw("F32", np.linspace(-1, 1, 8))
        elif where == "old":
            found[f"{attention}.kv_scale"] = raw("F32", np.float32(scale))
    return found
