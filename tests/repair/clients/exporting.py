"""Small exports for the tests with real clients, made as llm-compressor and DeepSeek make them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from quant import fp8, nvfp4
from quant.floats import Word
from quant.scheme import FP8_TENSOR, NVFP4_DIVIDE, Scheme

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Tensors = dict[str, torch.Tensor]
Quantise = Callable[[list[str], Tensors], Tensors]


def words(x: torch.Tensor) -> np.ndarray:
    """A bfloat16 tensor as uint16 words."""
    return x.contiguous().view(torch.int16).numpy().view(np.uint16)


def ct_nvfp4(names: list[str], state: Tensors) -> Tensors:
    """compressed-tensors NVFP4 of one fused set, as llm-compressor makes it of a bfloat16 model."""
    top = nvfp4.shared_amax(words(state[f"{name}.weight"]) for name in names)
    made: Tensors = {}
    for name in names:
        q = nvfp4.quantise(words(state[f"{name}.weight"]), top, scheme=NVFP4_DIVIDE, word=Word.BFLOAT16)
        made[f"{name}.weight_packed"] = torch.from_numpy(q.stored)
        made[f"{name}.weight_scale"] = torch.from_numpy(q.scales).view(torch.float8_e4m3fn)
        made[f"{name}.weight_global_scale"] = torch.from_numpy(np.asarray(q.global_scale, np.float32).reshape(1))
        made[f"{name}.input_global_scale"] = torch.tensor([700.0])
    return made


def ct_fp8(names: list[str], state: Tensors) -> Tensors:
    """compressed-tensors FP8, one float32 scale per tensor."""
    made: Tensors = {}
    for name in names:
        q = fp8.quantise(words(state[f"{name}.weight"]), FP8_TENSOR)
        made[f"{name}.weight"] = torch.from_numpy(q.stored).view(torch.float8_e4m3fn)
        made[f"{name}.weight_scale"] = torch.from_numpy(np.asarray(q.scales, np.float32).reshape(1))
        made[f"{name}.input_scale"] = torch.tensor([0.05])
    return made


def ct_fp8_block(names: list[str], state: Tensors) -> Tensors:
    """compressed-tensors' block FP8: the same, with the scale under another name."""
    return {key.removesuffix("_inv"): x for key, x in block_fp8(names, state).items()}


def block_fp8(names: list[str], state: Tensors) -> Tensors:
    """DeepSeek's block FP8 with blocks of 64."""
    scheme = Scheme(FP8_TENSOR.element, None, (64, 64))
    made: Tensors = {}
    for name in names:
        q = fp8.quantise(words(state[f"{name}.weight"]), scheme)
        made[f"{name}.weight"] = torch.from_numpy(q.stored).view(torch.float8_e4m3fn)
        made[f"{name}.weight_scale_inv"] = torch.from_numpy(np.asarray(q.scales, np.float32))
    return made


def _compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    group = {"format": form, "targets": ["Linear"], "output_activations": None}
    groups = {"group_0": {**group, "weights": weights, "input_activations": inputs}}
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": groups, "version": "0.19.0",
        "quantization_status": "compressed", "kv_cache_scheme": None, "ignore": ["lm_head", "re:.*mlp.gate$"],
    }  # fmt: skip


_FOUR = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
_EIGHT = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
_BLOCK = {**_EIGHT, "strategy": "block", "block_structure": [64, 64]}
CONFIGS: dict[Quantise, dict[str, Any]] = {
    ct_nvfp4: _compressed("nvfp4-pack-quantized", {**_FOUR, "dynamic": False}, {**_FOUR, "dynamic": "local"}),
    ct_fp8: _compressed("float-quantized", _EIGHT, _EIGHT),
    ct_fp8_block: _compressed("float-quantized", _BLOCK, {**_EIGHT, "strategy": "token", "dynamic": True}),
    block_fp8: {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]},
}


def exported(source: Path, to: Path, how: Quantise, apart: Iterable[str] = ()) -> Path:
    """The source's linear layers quantised, the rest as it is; sets whose leaf is in ``apart`` share no scale."""
    state = load_file(source / "model.safetensors")
    alone = set(apart)
    done: Tensors = {}
    for key in state:
        name, leaf = key.removesuffix(".weight"), key.removesuffix(".weight").rpartition(".")[2]
        if not leaf.endswith("_proj"):
            done[key] = state[key]
            continue
        fused = next((parts for parts in FUSED if leaf in parts and not alone & {*parts}), (leaf,))
        names = [f"{name.removesuffix(leaf)}{part}" for part in fused]
        done.update({own: x for own, x in how(names, state).items() if own.startswith(f"{name}.")})
    to.mkdir()
    for extra in source.glob("generation_config.json"):
        shutil.copy(extra, to)
    config = json.loads((source / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[how]}))
    save_file({key: x.contiguous() for key, x in done.items()}, to / "model.safetensors", {"format": "pt"})
    return to
