"""MXFP4 checkpoints to be cast, of given blocks, and what came of them, read without the tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auditor.checkpoint import open_checkpoint
from quant.mx_to_nv import Source
from repair.make import casting
from repair.make.activations import Activations, NoScales
from repair.make.castrow import CastRow, joined
from repair.make.folder import make
from repair.make.layouts import Layout
from repair.make.sources import Sources
from tests.raw import Raw, raw, shard_bytes

Bytes = NDArray[np.uint8]
CONFIG = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 2}


def draw(rng: np.random.Generator, shape: tuple[int, ...], spread: int = 9, top: int = 122) -> Source:
    """Random codes [..., K / 2] under exponents over ``spread`` octaves [..., K / 32], some blocks and halves zero."""
    packed = rng.integers(0, 256, (*shape, 16), np.uint8)
    scales = rng.integers(top - spread, top + 1, shape).astype(np.uint8)
    packed[rng.random(shape) < 0.05] &= 0x88
    halves = packed.reshape(*shape, 2, 8)
    halves[rng.random((*shape, 2)) < 0.05] &= 0x88
    scales[rng.random(shape) < 0.02] = 0
    packed[scales == 0] &= 0x88
    return Source(packed.reshape(*shape[:-1], -1), scales)


def gpt_oss(experts: Mapping[str, Source], bias: bool = True, seed: int = 0) -> dict[str, Raw]:
    """One layer's tensors; ``experts``: leaf -> packed [E, N, K / 2] and scales [E, N, K / 32]."""
    rng, stem = np.random.default_rng(seed), "model.layers.0.mlp"
    made = {
        "lm_head.weight": raw("BF16", rng.normal(size=(8, 64))),
        "model.layers.0.mlp.router.weight": raw("BF16", rng.normal(size=(2, 64))),
        "model.layers.0.mlp.router.bias": raw("BF16", rng.normal(size=2)),
        "model.layers.0.self_attn.q_proj.weight": raw("BF16", rng.normal(size=(64, 64))),
        "model.layers.0.self_attn.sinks": raw("BF16", rng.normal(size=4)),
    }
    for leaf, source in experts.items():
        name, shape = f"{stem}.experts.{leaf}", source.scales.shape
        made[f"{name}_blocks"] = raw("U8", source.packed, (*shape, 16))
        made[f"{name}_scales"] = raw("U8", source.scales)
        if bias:
            made[f"{name}_bias"] = raw("BF16", rng.normal(size=shape[:2]))
    return made


def write(root: Path, tensors: Mapping[str, Raw], config: Mapping[str, Any] | None = None, shards: int = 1) -> Path:
    """The folder; with several shards the tensors are dealt out by name, so that parts of a layer are apart."""
    root.mkdir(parents=True, exist_ok=True)
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {name: files[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in files:
        (root / file).write_bytes(shard_bytes({n: t for n, t in tensors.items() if where[n] == file}))
    if shards > 1:
        (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    declared = {**CONFIG, "quantization_config": {"quant_method": "mxfp4"}} if config is None else config
    (root / "config.json").write_text(json.dumps(declared))
    (root / "tokenizer.json").write_text("{}")
    return root


def cast(
    root: Path, target: Path, layout: Layout, activations: Activations | None = None, jobs: int = 1
) -> list[CastRow]:
    """The cast, made; its table, which must be the one that was told before."""
    checkpoint = open_checkpoint(root)
    with Sources(checkpoint) as sources:
        found = casting.plan(checkpoint, sources, layout, activations or NoScales())
        told = joined(found.rows())
        made = joined(make(found.job, target, jobs=jobs).rows)
    assert {row.tensor: replace(row, copied=0) for row in made} == {row.tensor: replace(row, copied=0) for row in told}
    return made


def tensors(root: Path) -> dict[str, Raw]:
    """Every tensor of a folder."""
    found: dict[str, Raw] = {}
    for path in sorted(root.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = Raw(entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
    return found
