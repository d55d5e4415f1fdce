"""Tiny checkpoints with a configuration, for rules that compare the two."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auditor.audit import Depth
from auditor.engine import scan
from auditor.finding import Finding
from auditor.rule import all_rules
from tests.auditor.shards import Spec, sound

LEAVES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
MODULES = tuple(f"model.layers.{i}.{leaf}" for i in range(2) for leaf in LEAVES)
NVFP4_GROUPS = {
    "group_0": {
        "input_activations": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
        "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
        "targets": ["Linear"],
    }
}
MODELOPT: dict[str, Any] = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "config_groups": NVFP4_GROUPS,
    "ignore": ["lm_head", "model.embed_tokens"],
    "producer": {"name": "modelopt", "version": "0.47.0"},
}


def plain(module: str) -> dict[str, Spec]:
    """An unquantised linear layer."""
    return {f"{module}.weight": ("BF16", [4, 32])}


def nvfp4(module: str, *, inputs: bool = True) -> dict[str, Spec]:
    """modelopt's NVFP4 layer of 4 rows and 32 columns."""
    tensors: dict[str, Spec] = {
        f"{module}.weight": ("U8", [4, 16]),
        f"{module}.weight_scale": ("F8_E4M3", [4, 2]),
        f"{module}.weight_scale_2": ("F32", []),
    }
    return {**tensors, f"{module}.input_scale": ("F32", [])} if inputs else tensors


def fp8(module: str, scale: list[int] | None = None, shape: list[int] | None = None) -> dict[str, Spec]:
    """An FP8 layer with a scale of the given shape and a static activation scale."""
    return {
        f"{module}.weight": ("F8_E4M3", shape or [4, 32]),
        f"{module}.weight_scale": ("F32", scale or []),
        f"{module}.input_scale": ("F32", []),
    }


def ct_nvfp4(module: str) -> dict[str, Spec]:
    """compressed-tensors' NVFP4 layer."""
    return {
        f"{module}.weight_packed": ("U8", [4, 16]),
        f"{module}.weight_scale": ("F8_E4M3", [4, 2]),
        f"{module}.weight_global_scale": ("F32", [1]),
        f"{module}.input_global_scale": ("F32", [1]),
    }


def ct_mxfp4(module: str) -> dict[str, Spec]:
    """compressed-tensors' MXFP4 layer."""
    return {f"{module}.weight_packed": ("U8", [4, 16]), f"{module}.weight_scale": ("U8", [4, 1])}


def ct_config(layout: str = "nvfp4-pack-quantized", **changes: Any) -> dict[str, Any]:
    """A compressed-tensors declaration; ``dynamic: "local"`` as llm-compressor writes it."""
    config = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "version": "0.19.0",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": layout,
                "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                "input_activations": {"num_bits": 4, "type": "float", "dynamic": "local", "group_size": 16},
            }
        },
    }
    return {**copy.deepcopy(config), **changes}


def outside() -> dict[str, Spec]:
    """Embedding, head and norm, which nothing quantises."""
    return {
        "model.embed_tokens.weight": ("BF16", [8, 32]),
        "lm_head.weight": ("BF16", [8, 32]),
        "model.norm.weight": ("BF16", [32]),
    }


def quantised(maker: Any = nvfp4, modules: tuple[str, ...] = MODULES, **options: Any) -> dict[str, Spec]:
    """The whole model, every projection made by ``maker``."""
    tensors = outside()
    for module in modules:
        tensors |= maker(module, **options)
    return tensors


def write(
    root: Path,
    tensors: Mapping[str, Spec],
    quantisation: Any = MODELOPT,
    beside: Any = None,
    **config: Any,
) -> Path:
    """A folder with one shard, config.json and, where given, hf_quant_config.json."""
    root.mkdir(exist_ok=True)
    (root / "model.safetensors").write_bytes(sound(tensors))
    content: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "num_hidden_layers": 2,
        **config,
    }
    if quantisation is not None:
        content["quantization_config"] = quantisation
    (root / "config.json").write_text(json.dumps(content))
    if beside is not None:
        (root / "hf_quant_config.json").write_text(json.dumps(beside))
    return root


def findings(root: Path, code: str = "CFG", depth: Depth = Depth.SCALARS) -> list[Finding]:
    """What the rules about declarations say of a folder, errors and warnings first."""
    audit = scan(root, rules=[rule for rule in all_rules() if rule.code.startswith("CFG")], depth=depth, jobs=1)
    if audit.errors:
        raise AssertionError(audit.errors)
    return [finding for finding in audit.findings if finding.code.startswith(code)]


def codes(root: Path, depth: Depth = Depth.SCALARS) -> list[tuple[str, str]]:
    """(code, severity) of every finding that is more than info."""
    return [(f.code, f.severity.label) for f in findings(root, depth=depth) if f.severity.label != "info"]
