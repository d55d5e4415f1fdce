"""A small NVFP4 checkpoint, sound or damaged, made from nothing: what `audit demo` scans.

Two layers of a mixture-of-experts model in modelopt's layout: packed codes, E4M3 scales of blocks of sixteen,
one float32 scale a tensor, one activation scale a layer.  Same bytes every time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.cast import encode, pack_nibbles
from quant.codes import E2M1, E4M3

LAYERS, EXPERTS, HIDDEN, INNER, VOCAB, HEAD = 2, 4, 64, 32, 64, 16
BLOCK = 16
_DTYPES: dict[str, np.dtype[np.generic]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "U8": np.dtype("u1"),
}

# What is broken, in words for the reader; `_damage` does it.
DAMAGE = (
    "three NaN block scales: over lost codes, over zeros, over codes that are still good",
    "a gate and an up projection of one expert with different weight_scale_2",
    "an activation scale of zero",
    "an activation scale that is missing",
)


class Stored(NamedTuple):
    """A tensor as a shard stores it."""

    dtype: str
    array: NDArray[np.generic]


Tensors = dict[str, Stored]


def forge(folder: Path, *, damaged: bool = True) -> None:
    """Write the checkpoint into an existing folder: two shards, index, configuration."""
    layers = [_layer(f"model.layers.{i}", np.random.default_rng(i)) for i in range(LAYERS)]
    rng = np.random.default_rng(LAYERS)
    ends: Tensors = {
        "model.embed_tokens.weight": _bf16(rng.normal(size=(VOCAB, HIDDEN))),
        "model.norm.weight": _bf16(np.ones(HIDDEN)),
        "lm_head.weight": _bf16(rng.normal(size=(VOCAB, HIDDEN))),
    }
    shards = {
        "model-00001-of-00002.safetensors": layers[0] | {"model.embed_tokens.weight": ends.pop(next(iter(ends)))},
        "model-00002-of-00002.safetensors": layers[1] | ends,
    }
    if damaged:
        _damage(*shards.values())
    for file, tensors in shards.items():
        (folder / file).write_bytes(_safetensors(tensors))
    _write_json(folder / "model.safetensors.index.json", _index(shards))
    _write_json(folder / "config.json", _config())
    _write_json(folder / "hf_quant_config.json", {"producer": _PRODUCER, "quantization": _quantization()})


def _damage(first: Tensors, second: Tensors) -> None:
    attention, experts = "model.layers.0.self_attn.", "model.layers.0.mlp.experts."
    _nan_scale(first, experts + "0.down_proj", row=5, byte=0x7F, codes=0x77)  # w / NaN packed as 7, 7, 7, ...
    _nan_scale(first, attention + "o_proj", row=11, byte=0xFF, codes=0x00)
    _nan_scale(first, experts + "2.down_proj", row=40, byte=0x7F, codes=None)
    first[experts + "3.down_proj.input_scale"] = _f32(0.0)
    experts = "model.layers.1.mlp.experts."
    rng = np.random.default_rng(99)
    second |= _linear(experts + "3.up_proj", [rng.normal(scale=0.06, size=(INNER, HIDDEN))], activation=4.0)[0]
    del second[experts + "2.down_proj.input_scale"]


def _nan_scale(tensors: Tensors, module: str, row: int, byte: int, codes: int | None) -> None:
    """Break the second block of a row: its scale, and its eight packed bytes where ``codes`` says so."""
    tensors[module + ".weight_scale"].array[row, 1] = byte
    if codes is not None:
        tensors[module + ".weight"].array[row, 8:16] = codes


def _layer(name: str, rng: np.random.Generator) -> Tensors:
    """One decoder layer: attention and experts quantised, norms and router not."""

    def weight(rows: int, columns: int) -> NDArray[np.float64]:
        return rng.normal(scale=0.02, size=(rows, columns))

    attention, out = f"{name}.self_attn.", {}
    qkv = [weight(HIDDEN, HIDDEN), weight(HIDDEN // 2, HIDDEN), weight(HIDDEN // 2, HIDDEN)]
    for part in _linear(attention + "{}_proj", qkv, rng.uniform(4, 8), "qkv"):
        out.update(part)
    out.update(_linear(attention + "o_proj", [weight(HIDDEN, HIDDEN)], rng.uniform(4, 8))[0])
    for at in range(EXPERTS):
        expert = f"{name}.mlp.experts.{at}."
        pair = [weight(INNER, HIDDEN), weight(INNER, HIDDEN)]
        for part in _linear(expert + "{}_proj", pair, 4.0, ("gate", "up")):
            out.update(part)
        out.update(_linear(expert + "down_proj", [weight(HIDDEN, INNER)], rng.uniform(2, 4))[0])
    out[f"{name}.mlp.gate.weight"] = _bf16(weight(EXPERTS, HIDDEN))
    for norm, length in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)):
        out[f"{name}.{norm}.weight"] = _bf16(np.ones(length))
    for norm in ("q_norm", "k_norm"):
        out[f"{attention}{norm}.weight"] = _bf16(np.ones(HEAD))
    return out


def _linear(
    module: str, weights: list[NDArray[np.float64]], activation: float, leaves: str | tuple[str, ...] = ("",)
) -> list[Tensors]:
    """The tensors of layers that share their scales; ``module`` has a {} for each leaf."""
    amax = max(float(np.abs(w).max()) for w in weights)
    shared = np.float32(amax / (E2M1.max * E4M3.max))
    parts = []
    for w, leaf in zip(weights, leaves, strict=True):
        name = module.format(leaf)
        codes, scales = _quantise(w.astype(np.float32), shared)
        parts.append(
            {
                f"{name}.weight": Stored("U8", codes),
                f"{name}.weight_scale": Stored("F8_E4M3", scales),
                f"{name}.weight_scale_2": _f32(float(shared)),
                f"{name}.input_scale": _f32(activation / (E2M1.max * E4M3.max)),
            }
        )
    return parts


def _quantise(w_NK: NDArray[np.float32], shared: np.float32) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Packed codes [N, K/2] and block scales [N, K/16]: each block's amax becomes 6."""
    rows, columns = w_NK.shape
    w_NGB = w_NK.reshape(rows, columns // BLOCK, BLOCK)
    scales = encode(E4M3, np.abs(w_NGB).max(-1) / np.float32(E2M1.max) / shared).codes
    step_NG1 = (E4M3.values[scales] * shared)[..., None]
    return pack_nibbles(encode(E2M1, w_NGB / step_NG1).codes.reshape(rows, columns)), scales


def _f32(value: float) -> Stored:
    return Stored("F32", np.array(value, np.float32))


def _bf16(values: NDArray[np.float64]) -> Stored:
    """The upper halves of the float32 values: rounded towards zero, which is good enough for random weights."""
    return Stored("BF16", (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2"))


def _safetensors(tensors: Tensors) -> bytes:
    """A shard's bytes, in the order of the format's own writer: widest dtype first, then by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    order = list(_DTYPES)
    for name, (dtype, array) in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        raw = array.astype(_DTYPES[dtype]).tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def _index(shards: dict[str, Tensors]) -> dict[str, object]:
    weight_map = {name: file for file, tensors in shards.items() for name in sorted(tensors)}
    size = sum(t.array.size * _DTYPES[t.dtype].itemsize for tensors in shards.values() for t in tensors.values())
    return {"metadata": {"total_size": size}, "weight_map": weight_map}


_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_EXCLUDED = ["lm_head", "model.embed_tokens", *(f"model.layers.{i}.mlp.gate" for i in range(LAYERS))]


def _quantization() -> dict[str, object]:
    return {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": BLOCK, "exclude_modules": _EXCLUDED}


def _config() -> dict[str, object]:
    part = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
    group = {"input_activations": part, "weights": part, "targets": ["Linear"]}
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": HIDDEN // HEAD // 2,
        "head_dim": HEAD,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "producer": _PRODUCER,
            "ignore": _EXCLUDED,
            "config_groups": {"group_0": group},
        },
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
