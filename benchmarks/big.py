"""Makes large, healthy NVFP4 checkpoints for the benchmarks: modelopt's layout, sharded, with index and config."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIDDEN, MLP, KV = 2048, 6144, 512
SHAPES = {
    "mlp.down_proj": (HIDDEN, MLP),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
}
LAYER_BYTES = sum(n * k // 2 + n * k // 16 + 8 for n, k in SHAPES.values())
TENSORS_PER_LAYER = 4 * len(SHAPES)
Entry = tuple[str, str, tuple[int, ...], int]  # name, dtype, shape, bytes


def entries(layers: range) -> Iterator[Entry]:
    """The tensors of these layers in the order the safetensors writer gives them: F32, then F8, then U8."""
    names = [(f"model.layers.{i}.{name}", shape) for i in layers for name, shape in SHAPES.items()]
    for name, _ in names:
        yield f"{name}.input_scale", "F32", (), 4
        yield f"{name}.weight_scale_2", "F32", (), 4
    for name, (n, k) in names:
        yield f"{name}.weight_scale", "F8_E4M3", (n, k // 16), n * k // 16
    for name, (n, k) in names:
        yield f"{name}.weight", "U8", (n, k // 2), n * k // 2


def write_shard(path: Path, tensors: list[Entry], seed: int) -> list[str]:
    """One safetensors file; random codes, bell-shaped scales below 448, one global scale for all."""
    rng = np.random.default_rng(seed)
    header, at = {}, 0
    for name, dtype, shape, nbytes in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    codes = rng.integers(0, 256, 1 << 24, np.uint8)
    scales = np.clip(rng.normal(0x74, 4, 1 << 24), 0x58, 0x7E).astype(np.uint8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, _, nbytes in tensors:
            if dtype == "F32":
                file.write(struct.pack("<f", 3.5e-5 if name.endswith("_2") else 1.2e-3))
                continue
            pool = codes if dtype == "U8" else scales
            first = int(rng.integers(0, pool.size - min(nbytes, pool.size) + 1))
            piece = pool[first : first + nbytes]
            for done in range(0, nbytes, max(1, piece.size)):
                file.write(piece[: nbytes - done].data)
    return [name for name, *_ in tensors]


def write_json(path: Path, content: object) -> None:
    """A configuration file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def make(folder: Path, gigabytes: float, shards: int = 4) -> int:
    """A checkpoint of about ``gigabytes``; returns its tensor count.  Kept when it is there already."""
    layers = max(shards, round(gigabytes * 1e9 / LAYER_BYTES))
    marker = folder / "complete"
    if marker.exists():
        return int(marker.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        span = range(layers * number // shards, layers * (number + 1) // shards)
        weight_map.update(dict.fromkeys(write_shard(folder / name, list(entries(span)), number), name))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_config(folder)
    marker.write_text(str(len(weight_map)))
    return len(weight_map)


def make_headers(folder: Path, tensors: int = 100_000, shards: int = 64) -> None:
    """A checkpoint of many tiny expert tensors: all header, hardly any data."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    experts = tensors // shards // 12
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        sized: list[Entry] = []
        for expert in range(experts):
            for leaf in ("down_proj", "gate_proj", "up_proj"):
                stem = f"model.layers.{number}.mlp.experts.{expert}.{leaf}"
                sized += [(f"{stem}.input_scale", "F32", (), 4), (f"{stem}.weight_scale_2", "F32", (), 4)]
                sized += [(f"{stem}.weight_scale", "F8_E4M3", (4, 1), 4), (f"{stem}.weight", "U8", (4, 8), 32)]
        sized.sort(key=lambda entry: ({"F32": 0, "F8_E4M3": 1, "U8": 2}[entry[1]], entry[0]))
        weight_map.update(dict.fromkeys(write_shard(folder / name, sized, number), name))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_config(folder)
    (folder / "complete").write_text(str(len(weight_map)))


def write_config(folder: Path) -> None:
    """config.json and hf_quant_config.json as modelopt writes them."""
    group = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    quantization = {
        "config_groups": {"group_0": {"input_activations": group, "weights": group, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
        "quant_algo": "NVFP4",
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quant_method": "modelopt",
    }
    write_json(folder / "config.json", {"model_type": "qwen3_moe", "quantization_config": quantization})
    inner = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["lm_head"]}
    write_json(
        folder / "hf_quant_config.json",
        {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": inner},
    )
