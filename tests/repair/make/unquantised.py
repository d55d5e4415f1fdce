"""Unquantised checkpoints of every kind that a recipe meets, and what their weights are, said without the tool.

`source(kind)` gives tensors, configuration and, by module, the matrices as a loader sees them: [out, in], float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.raw import Raw, raw, shard_bytes

H, INNER, E, LAYERS = 64, 48, 3, 2  # hidden and intermediate size, experts
Matrix = NDArray[np.float32]


@dataclass
class Model:
    """``matrices``: by the name that a module has in an export; ``sets``: which share a scale, others stand alone."""

    config: dict[str, Any]
    tensors: dict[str, Raw]
    matrices: dict[str, Matrix]
    sets: list[tuple[str, ...]]

    def write(self, folder: Path, shards: Sequence[str] = ("model.safetensors",)) -> Path:
        """On disk; with several shards the tensors are dealt out in turn, so that sets straddle them."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config))
        names = sorted(self.tensors)
        for number, shard in enumerate(shards):
            held = {name: self.tensors[name] for name in names[number :: len(shards)]}
            (folder / shard).write_bytes(shard_bytes(held))
        if len(shards) > 1:
            index = {name: shards[at % len(shards)] for at, name in enumerate(names)}
            content = {"metadata": {}, "weight_map": index}
            (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        return folder


class _Maker:
    def __init__(self, model_type: str, dtype: str, **config: Any) -> None:
        self.rng, self.dtype = np.random.default_rng(7), dtype
        self.model = Model({"model_type": model_type, "num_hidden_layers": LAYERS, **config}, {}, {}, [])

    def float(self, name: str, *shape: int) -> Matrix:
        """A stored tensor, and the values it really has."""
        values = self.rng.standard_normal(shape).astype(np.float32) * np.float32(self.rng.uniform(0.01, 0.3))
        self.model.tensors[name] = stored = raw(self.dtype, values)
        return stored.values().astype(np.float32)

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.model.matrices[name] = self.float(f"{name}.weight", rows, columns)

    def attention(self, at: str, biased: bool = False) -> None:
        for leaf, rows in (("q_proj", H), ("k_proj", 32), ("v_proj", 32), ("o_proj", H)):
            self.linear(f"{at}.{leaf}", rows, H)
            if biased:
                self.float(f"{at}.{leaf}.bias", rows)
        self.model.sets.append(tuple(f"{at}.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj")))

    def mlp(self, at: str, names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"), inner: int = INNER) -> None:
        gate, up, down = (f"{at}.{name}" for name in names)
        self.linear(gate, inner, H)
        self.linear(up, inner, H)
        self.linear(down, H, inner)
        self.model.sets.append((gate, up))

    def fused(self, at: str, across: bool, interleaved: bool = False, biased: bool = False) -> None:
        """gate_up and down of all experts in two tensors."""
        for leaf, rows, columns in (("gate_up_proj", 2 * INNER, H), ("down_proj", H, INNER)):
            shape = (E, columns, rows) if across else (E, rows, columns)
            values = self.float(f"{at}.{leaf}", *shape)
            slabs = values.transpose(0, 2, 1) if across else values
            if biased:
                self.float(f"{at}.{leaf}_bias", E, rows)
            for e, slab in enumerate(slabs):
                if leaf == "down_proj":
                    self.model.matrices[f"{at}.{e}.{leaf}"] = slab
                    continue
                halves = (slab[0::2], slab[1::2]) if interleaved else (slab[:INNER], slab[INNER:])
                for part, half in zip(("gate_proj", "up_proj"), halves, strict=True):
                    self.model.matrices[f"{at}.{e}.{part}"] = half
                self.model.sets.append((f"{at}.{e}.gate_proj", f"{at}.{e}.up_proj"))

    def ends(self) -> Model:
        self.float("model.embed_tokens.weight", 40, H)
        self.float("model.norm.weight", H)
        self.float("lm_head.weight", 40, H)
        return self.model


def source(kind: str, dtype: str = "BF16") -> Model:
    """One of KINDS."""
    types = {"qwen3moe_fused": "qwen3_moe", "qwen3moe": "qwen3_moe", "gptoss": "gpt_oss", "llama4": "llama4_text",
             "deepseek": "deepseek_v3"}  # fmt: skip
    make = _Maker(types.get(kind, kind), dtype)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        make.float(f"{at}.input_layernorm.weight", H)
        if kind == "deepseek":
            _deepseek(make, at)
            continue
        make.attention(f"{at}.self_attn", biased=kind == "gptoss")
        if kind == "llama":
            make.mlp(f"{at}.mlp")
        elif kind == "mixtral":
            make.float(f"{at}.block_sparse_moe.gate.weight", E, H)
            for e in range(E):
                make.mlp(f"{at}.block_sparse_moe.experts.{e}", ("w1", "w3", "w2"))
        elif kind == "llama4":
            make.float(f"{at}.feed_forward.router.weight", E, H)
            make.fused(f"{at}.feed_forward.experts", across=True)
            make.mlp(f"{at}.feed_forward.shared_expert")
        elif kind == "gptoss":
            make.float(f"{at}.mlp.router.weight", E, H)
            make.float(f"{at}.mlp.router.bias", E)
            make.float(f"{at}.self_attn.sinks", 4)
            make.fused(f"{at}.mlp.experts", across=True, interleaved=True, biased=True)
        else:
            make.float(f"{at}.mlp.gate.weight", E, H)
            if kind == "qwen3moe_fused":
                make.fused(f"{at}.mlp.experts", across=False)
            else:
                for e in range(E):
                    make.mlp(f"{at}.mlp.experts.{e}")
    return make.ends()


KINDS = ("llama", "qwen3moe", "qwen3moe_fused", "mixtral", "llama4", "gptoss", "deepseek")


def _deepseek(make: _Maker, at: str) -> None:
    """Latent attention, shared experts, a router with a correction, and an MTP layer beyond the last."""
    a = f"{at}.self_attn"
    for leaf, rows, columns in (("q_a_proj", 32, H), ("kv_a_proj_with_mqa", 40, H), ("q_b_proj", H, 32),
                                ("kv_b_proj", H, 32), ("o_proj", H, H)):  # fmt: skip
        make.linear(f"{a}.{leaf}", rows, columns)
    make.model.sets.append((f"{a}.q_a_proj", f"{a}.kv_a_proj_with_mqa"))
    make.float(f"{at}.mlp.gate.weight", E, H)
    make.float(f"{at}.mlp.gate.e_score_correction_bias", E)
    for e in range(E):
        make.mlp(f"{at}.mlp.experts.{e}")
    make.mlp(f"{at}.mlp.shared_experts", inner=32)
    make.float(f"model.layers.{LAYERS}.mlp.gate_proj.weight", INNER, H)
    make.float(f"model.layers.{LAYERS}.eh_proj.weight", H, 2 * H)
