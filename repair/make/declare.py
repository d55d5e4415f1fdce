"""The configuration of a new checkpoint, as the exporters of its layout write it.

Read in released source: compressed-tensors 0.19 (QuantizationConfig.to_dict) and modelopt 0.47
(convert_hf_config.py), whose loaders in vLLM, SGLang, TensorRT-LLM and transformers look at these keys.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

from auditor.checkpoint import CONFIG, HF_QUANT_CONFIG
from auditor.declaration import Activation, Algorithm, Family, Group
from auditor.dialects import located
from auditor.jsonfile import Json
from quant.errors import RepairError
from repair.make.job import tool_version
from repair.make.layouts import Layout

_CT_VERSION = "0.19.0"  # of compressed-tensors, whose layout and key names these are
_MODELOPT_VERSION = "0.47.0"
_FORMATS = {
    Family.NVFP4: "nvfp4-pack-quantized",
    Family.FP8: "float-quantized",
    Family.FP8_CHANNEL: "float-quantized",
    Family.FP8_BLOCK: "float-quantized",
}
_ALGOS = {
    (Family.NVFP4, Activation.STATIC): "NVFP4",
    (Family.NVFP4, Activation.NONE): "W4A16_NVFP4",
    (Family.FP8, Activation.STATIC): "FP8",
    (Family.FP8_CHANNEL, Activation.DYNAMIC): "FP8_PER_CHANNEL_PER_TOKEN",
    (Family.FP8_BLOCK, Activation.DYNAMIC): "FP8_PB_WO",
}


@dataclass(frozen=True)
class Declaration:
    """What a new checkpoint says of itself.

    ``groups``: one for each way of quantising; the targets are class names (Linear) or modules.  ``ignore``: modules,
    or patterns in the layout's own dialect, that are not quantised.  ``kv_fp8``: the KV cache is FP8.
    """

    groups: tuple[Group, ...]
    ignore: tuple[str, ...] = ()
    kv_fp8: bool = False


def texts(layout: Layout, config: Json, declaration: Declaration) -> dict[str, bytes | None]:
    """config.json and hf_quant_config.json (None where the layout has none), from the source's config.json.

    Whatever the source declared is replaced; all else is kept, in its order.  RepairError when the layout cannot
    declare a group.
    """
    new = without_declaration(config)
    if layout is Layout.COMPRESSED_TENSORS:
        new["quantization_config"] = compressed_tensors(declaration)
        return {CONFIG: _text(new, 2), HF_QUANT_CONFIG: None}
    new["quantization_config"] = modelopt(declaration)
    return {CONFIG: _text(new, 2), HF_QUANT_CONFIG: _text(hf_quant_config(declaration), 4)}


def without_declaration(config: Json) -> Json:
    """A copy of config.json that declares no quantisation, wherever it was declared."""
    new = copy.deepcopy(config)
    for key, _ in located(config):
        *parents, last = key.split(".")
        inner = new
        for parent in parents:
            inner = inner[parent]
        inner.pop(last, None)
    return new


def compressed_tensors(declaration: Declaration) -> Json:
    """The ``quantization_config`` of compressed-tensors."""
    formats = sorted({_format(group.algorithm) for group in declaration.groups})
    return {
        "config_groups": {group.name: _ct_group(group) for group in declaration.groups},
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": list(declaration.ignore),
        "kv_cache_scheme": _arguments(num_bits=8, strategy="tensor", observer=None) if declaration.kv_fp8 else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": _CT_VERSION,
    }


def _ct_group(group: Group) -> Json:
    return {
        "format": _format(group.algorithm),
        "input_activations": _ct_activations(group.algorithm),
        "output_activations": None,
        "targets": list(group.targets),
        "weights": _ct_weights(group.algorithm),
    }


def _format(algorithm: Algorithm) -> str:
    try:
        return _FORMATS[algorithm.family]
    except KeyError:
        raise RepairError(f"{algorithm.name}: compressed-tensors' layout of it is not written") from None


def _ct_weights(algorithm: Algorithm) -> Json:
    minmax = "memoryless_minmax"
    if algorithm.family is Family.NVFP4:
        return _arguments(num_bits=4, strategy="tensor_group", group_size=16, scale_dtype=_E4M3, observer=minmax)
    strategy = {Family.FP8: "tensor", Family.FP8_CHANNEL: "channel", Family.FP8_BLOCK: "block"}[algorithm.family]
    return _arguments(num_bits=8, strategy=strategy, block=algorithm.block, observer=minmax)


def _ct_activations(algorithm: Algorithm) -> Json | None:
    if algorithm.activation is Activation.NONE:
        return None
    static = algorithm.activation is Activation.STATIC
    observer = "static_minmax" if static else None
    if algorithm.family is Family.NVFP4:
        # Blocks are scaled while serving ("local") under a stored global scale.
        return _arguments(num_bits=4, strategy="tensor_group", group_size=16, scale_dtype=_E4M3, observer=observer,
                          dynamic="local")  # fmt: skip
    if algorithm.family is Family.FP8_BLOCK:
        size = algorithm.block[1] if algorithm.block else 128
        return _arguments(num_bits=8, strategy="group", group_size=size, dynamic=True, observer=None)
    return _arguments(num_bits=8, strategy="tensor" if static else "token", dynamic=not static, observer=observer)


_E4M3 = "torch.float8_e4m3fn"


def _arguments(
    *,
    num_bits: int,
    strategy: str,
    group_size: int | None = None,
    block: tuple[int, int] | None = None,
    scale_dtype: str | None = None,
    observer: str | None,
    dynamic: bool | str = False,
) -> Json:
    """QuantizationArgs as compressed-tensors serialises it, every field named."""
    return {
        "actorder": None,
        "block_structure": None if block is None else list(block),
        "dynamic": dynamic,
        "group_size": group_size,
        "num_bits": num_bits,
        "observer": observer,
        "observer_kwargs": {},
        "scale_dtype": scale_dtype,
        "strategy": strategy,
        "symmetric": True,
        "type": "float",
        "zp_dtype": None,
    }


def modelopt(declaration: Declaration) -> Json:
    """The flat ``quantization_config`` of modelopt."""
    out: Json = {}
    if all(group.algorithm.family in (Family.NVFP4, Family.FP8) for group in declaration.groups):
        out["config_groups"] = {group.name: _modelopt_group(group) for group in declaration.groups}
    out.update(_algorithms(declaration))
    out["ignore"] = list(declaration.ignore)
    if declaration.kv_fp8:
        out["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    out["producer"] = _producer()
    out["quant_method"] = "modelopt"
    return out


def hf_quant_config(declaration: Declaration) -> Json:
    """hf_quant_config.json, the second file that modelopt writes and TensorRT-LLM reads first."""
    inner = _algorithms(declaration)
    inner["kv_cache_quant_algo"] = "FP8" if declaration.kv_fp8 else None
    if len(declaration.groups) == 1 and declaration.groups[0].algorithm.family is Family.NVFP4:
        inner["group_size"] = 16
    if declaration.ignore or "quantized_layers" not in inner:
        inner["exclude_modules"] = list(declaration.ignore)
    return {"producer": _producer(), "quantization": inner}


def _algorithms(declaration: Declaration) -> Json:
    """quant_algo; and, of several, the table of layers."""
    if len(declaration.groups) == 1:
        return {"quant_algo": _algo(declaration.groups[0].algorithm)}
    layers: Json = {}
    for group in declaration.groups:
        entry: Json = {"quant_algo": _algo(group.algorithm)}
        if group.algorithm.family is Family.NVFP4:
            entry["group_size"] = 16
        layers.update({target: dict(entry) for target in group.targets})
    return {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


def _algo(algorithm: Algorithm) -> str:
    try:
        return _ALGOS[algorithm.family, algorithm.activation]
    except KeyError:
        way = f"{algorithm.family.value} weights, {algorithm.activation.value} activation scales"
        raise RepairError(f"modelopt has no algorithm of {way}") from None


def _modelopt_group(group: Group) -> Json:
    bits = 4 if group.algorithm.family is Family.NVFP4 else 8
    one: Json = {"dynamic": False, "num_bits": bits, "type": "float"}
    if bits == 4:
        one["group_size"] = 16
    activations = {"input_activations": one} if group.algorithm.activation is Activation.STATIC else {}
    return {**activations, "weights": dict(one), "targets": list(group.targets)}


def _producer() -> Json:
    """Whose layout it is: TensorRT-LLM's AutoDeploy refuses any other name.  Who wrote it is a key that none reads."""
    return {"name": "modelopt", "version": _MODELOPT_VERSION, "made_by": f"checkpoint-audit {tool_version()}".strip()}


def _text(content: Json, indent: int) -> bytes:
    return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode()
