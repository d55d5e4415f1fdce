"""Checkpoints put together at random from the words of real ones: legal files, impossible layers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from auditor.formats.base import all_formats
from auditor.layer import KV_LEAVES, SCALE_LEAVES
from auditor.tensorref import DTYPE_BITS
from benchmarks.hostile import INDEX, shard

MODULES = [
    "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.experts.0.gate_proj",
    "model.layers.0.mlp.experts.0.up_proj", "model.layers.0.mlp.experts.1.gate_proj", "model.layers.0.mlp.experts",
    "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj",
    "model.layers.0.self_attn", "model.layers.1.block_sparse_moe.experts.3.w1", "lm_head", "model.embed_tokens", "",
]  # fmt: skip
_SUFFIXES = {part.suffix.removeprefix(".") for fmt in all_formats() for part in fmt.parts.values()}
LEAVES = sorted(_SUFFIXES | SCALE_LEAVES | KV_LEAVES | {"weight", "bias", "gate_up_proj", "down_proj", "scale"})
STEMS = ["", "", "", "gate_up_proj", "down_proj", "gate_up_proj_", "down_proj_"]
COMMON = ["U8", "F8_E4M3", "F32", "BF16", "F8_E8M0", "I8", "F16", "I32"]
LENGTHS = [0, 1, 1, 2, 3, 4, 8, 16, 16, 32, 64, 128, 128, 256]
FILLS = [b"\0", b"\xff", b"\x77", b"\x7f", b"\x7e", b"\x80", b"\x38", b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f"]
TEMPLATES: list[dict[str, tuple[str, list[int]]]] = [
    {
        "weight": ("U8", [64, 32]),
        "weight_scale": ("F8_E4M3", [64, 4]),
        "weight_scale_2": ("F32", []),
        "input_scale": ("F32", []),
        "pre_quant_scale": ("BF16", [64]),
        "k_scale": ("F32", []),
    },
    {
        "weight_packed": ("U8", [64, 32]),
        "weight_scale": ("F8_E4M3", [64, 4]),
        "weight_global_scale": ("F32", [1]),
        "input_global_scale": ("F32", [1]),
    },
    {"weight": ("U8", [64, 32]), "weight_scale": ("U8", [64, 2])},
    {"weight": ("F8_E4M3", [64, 64]), "weight_scale": ("F32", []), "input_scale": ("F32", []), "v_scale": ("F32", [])},
    {"weight": ("F8_E4M3", [128, 256]), "weight_scale_inv": ("F32", [1, 2])},
    {
        "gate_up_proj": ("U8", [2, 32, 64]),
        "gate_up_proj_weight_scale": ("F8_E4M3", [2, 4, 64]),
        "gate_up_proj_weight_scale_2": ("F32", []),
        "gate_up_proj_input_scale": ("F32", []),
    },
    {"gate_up_proj_blocks": ("U8", [2, 32, 2, 16]), "gate_up_proj_scales": ("U8", [2, 32, 2])},
    {"weight": ("I8", [64, 32]), "scale": ("F8_E8M0", [64, 2])},
    {"weight": ("BF16", [64, 64]), "bias": ("F32", [64])},
]
WORDS = [
    "modelopt", "compressed-tensors", "fp8", "mxfp4", "quark", "NVFP4", "FP8", "MIXED_PRECISION", "W4A16_NVFP4", "",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "float-quantized", "tensor_group", "group", "channel", "static",
    "lm_head", "re:.*mlp.*", "*", "re:(", "model.layers.0*", "Linear", "llama", "mixtral", "gpt_oss", "float", "FP4",
]  # fmt: skip
KEYS = [
    "quantization_config", "quant_method", "quant_algo", "config_groups", "group_0", "weights", "input_activations",
    "targets", "ignore", "exclude_modules", "modules_to_not_convert", "quantization", "quantized_layers", "group_size",
    "num_bits", "type", "strategy", "format", "kv_cache_quant_algo", "kv_cache_scheme", "weight_block_size",
    "model_type", "architectures", "tie_word_embeddings", "num_hidden_layers", "producer", "scale_fmt", "dynamic",
    "actorder", "version", "block_structure", "num_experts", "text_config", "layer_types", "global_quant_config",
]  # fmt: skip


def assemble(root: Path, rng: random.Random) -> None:
    """Write one or two shards, and sometimes an index and configuration, into an empty folder."""
    files = ["model.safetensors"] if rng.random() < 0.5 else [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map: dict[str, str] = {}
    for file in files:
        entries, data = _tensors(rng)
        weight_map |= dict.fromkeys(entries, file)
        (root / file).write_bytes(shard(entries, data))
    if rng.random() < 0.5:
        (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "hf_quant_config.json"):
        if rng.random() < 0.7:
            (root / name).write_text(json.dumps(_config(rng)))


def _tensors(rng: random.Random) -> tuple[dict[str, Any], bytes]:
    entries: dict[str, Any] = {}
    data = bytearray()
    for _ in range(rng.choice((1, 2, 4, 8))):
        module, template = rng.choice(MODULES), rng.choice(TEMPLATES)
        usual = rng.random() < 0.8
        leaves = (
            list(template) if usual else [rng.choice(STEMS) + leaf for leaf in rng.sample(LEAVES, rng.randint(1, 6))]
        )
        for leaf in leaves:
            dtype = rng.choice(COMMON if rng.random() < 0.9 else sorted(DTYPE_BITS))
            shape = [rng.choice(LENGTHS) for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3, 4)))]
            if usual and rng.random() < 0.95:
                shape = template[leaf][1]
            if usual and rng.random() < 0.95:
                dtype = template[leaf][0]
            if usual and rng.random() < 0.05:
                continue
            bits = DTYPE_BITS[dtype]
            for length in shape:
                bits *= length
            if bits % 8 or bits > 1 << 22 or len(data) > 1 << 20:
                continue
            name = f"{module}.{leaf}" if module else leaf
            if name not in entries:
                entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + bits // 8]}
                data += _payload(bits // 8, rng)
    return entries, bytes(data)


def _payload(size: int, rng: random.Random) -> bytes:
    fill = rng.choice(FILLS)
    payload = bytearray(rng.randbytes(size) if rng.random() < 0.4 else (fill * (size // len(fill) + 1))[:size])
    for _ in range(rng.choice((0, 0, 1, 5))):
        if payload:
            payload[rng.randrange(size)] = rng.choice(b"\x00\x7f\xff\x80\x77\x01\x7e")
    return bytes(payload)


def _config(rng: random.Random) -> dict[str, Any]:
    method = rng.choice(WORDS[:5])
    inner = {"quant_method": method} | {rng.choice(KEYS): _value(rng, 3) for _ in range(rng.randint(0, 6))}
    outer = {rng.choice(KEYS): _value(rng, 4) for _ in range(rng.randint(0, 4))}
    return outer | {rng.choice(("quantization_config", "quantization", "compression_config")): inner}


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 6)
    if kind < 3:
        return rng.choice(WORDS)
    if kind < 6:
        return rng.choice([None, True, False, 0, 1, 4, 8, 16, 32, -1, 2**70, 0.5, float("nan"), [128, 128], "128", ""])
    if kind == 6:
        return [_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice([*KEYS, *WORDS, *MODULES]): _value(rng, depth - 1) for _ in range(rng.randint(0, 4))}
