"""The table of layouts: what is encoded how, and what the configuration says of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.forge import Declaration, Layout

Json = dict[str, Any]
Declared = tuple[Json | None, Json | None]
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_KV8 = {"dynamic": False, "num_bits": 8, "type": "float"}


def _modelopt(told: Declaration, *, algo: str, size: int = 0, flat: bool = True, **more: Any) -> Declared:
    exclude = sorted(told.plain)
    inner: Json = {"quant_algo": algo, "kv_cache_quant_algo": "FP8" if told.kv else None, **more}
    if size:
        inner["group_size"] = size
    inner["exclude_modules"] = exclude
    beside = {"producer": _PRODUCER, "quantization": inner}
    if not flat:
        return None, beside
    config: Json = {"ignore": exclude, "quant_algo": algo, "producer": _PRODUCER, "quant_method": "modelopt"}
    if told.kv:
        config["kv_cache_scheme"] = _KV8
    return config, beside


def _mixed(told: Declaration) -> Declared:
    names = {"nvfp4": {"quant_algo": "NVFP4", "group_size": 16}, "fp8": {"quant_algo": "FP8"}}
    layers = {module: names[encoder] for module, encoder in told.quantised.items()}
    inner = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    flat = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers, "quant_method": "modelopt"}
    return flat | {"ignore": sorted(told.plain), "producer": _PRODUCER}, {"producer": _PRODUCER, "quantization": inner}


def _ct(told: Declaration, *, layout: str, weights: Json, inputs: Json | None) -> Declared:
    group = {"format": layout, "weights": weights, "input_activations": inputs, "targets": ["Linear"]}
    config: Json = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": sorted(name for name in told.plain if "embed" not in name),
        "kv_cache_scheme": _KV8 if told.kv else None,
        "quantization_status": "compressed",
        "version": "0.20.0",
    }
    return config, None


def _bits(bits: int, strategy: str, **more: Any) -> Json:
    return {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False} | more


def _fp8(told: Declaration, *, block: bool = True, scheme: str = "dynamic", **more: Any) -> Declared:
    config: Json = {"quant_method": "fp8", "activation_scheme": scheme, "fmt": "e4m3", **more}
    if block:
        config["weight_block_size"] = [128, 128]
    return config, None


def _quark(told: Declaration, *, weight: Any, inputs: Any) -> Declared:
    config = {
        "quant_method": "quark",
        "exclude": sorted(name for name in told.plain if "embed" not in name),
        "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"},
        "global_quant_config": {"weight": weight, "input_tensors": inputs, "output_tensors": None},
        "layer_quant_config": {},
    }
    return config, None


def _gpt_oss(told: Declaration) -> Declared:
    exclude = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return {"quant_method": "mxfp4", "modules_to_not_convert": exclude}, None


def _plain(told: Declaration, **config: Any) -> Declared:
    return (config or None), None


def _spec(dtype: str, scheme: str, size: int | None, dynamic: bool) -> Json:
    return {"dtype": dtype, "qscheme": scheme, "group_size": size, "is_dynamic": dynamic}


_FP4_16 = _bits(4, "tensor_group", group_size=16)
_FP4_32 = _bits(4, "group", group_size=32)
_ALL = {"attention", "mlp", "experts"}
LAYOUTS: dict[str, Layout] = {}


def _add(
    name: str,
    label: str,
    architecture: str,
    encoder: str | dict[str, str],
    declare: Callable[[Declaration], Declared],
    kv: str = "",
    configured: bool = True,
) -> None:
    encoders = dict.fromkeys(_ALL, encoder) if isinstance(encoder, str) else encoder
    LAYOUTS[name] = Layout(name, tuple(label.split()), architecture, encoders, declare, kv, configured)


_nvfp4 = partial(_modelopt, algo="NVFP4", size=16)
_ct_nvfp4 = partial(_ct, layout="nvfp4-pack-quantized", weights=_FP4_16, inputs=_FP4_16 | {"dynamic": "local"})
_ct_fp8 = partial(_ct, layout="float-quantized")
_with_head = {"attention": "nvfp4", "mlp": "nvfp4", "experts": "nvfp4", "head": "nvfp4"}

_add("modelopt-nvfp4", "modelopt-nvfp4", "llama", "nvfp4", _nvfp4)
_add("modelopt-nvfp4-old", "modelopt-nvfp4", "llama", "nvfp4", partial(_nvfp4, flat=False))
_add("modelopt-nvfp4-moe", "modelopt-nvfp4", "qwen3_moe", "nvfp4", _nvfp4)
_add("modelopt-nvfp4-mixtral", "modelopt-nvfp4", "mixtral", "nvfp4", _nvfp4)
_add("modelopt-nvfp4-mla", "modelopt-nvfp4", "deepseek_v3", "nvfp4", _nvfp4)
_add("modelopt-nvfp4-mlp-only", "modelopt-nvfp4", "llama", {"mlp": "nvfp4"}, _nvfp4)
_add("modelopt-nvfp4-head", "modelopt-nvfp4", "llama", _with_head, _nvfp4)
_add("modelopt-w4a16", "modelopt-w4a16", "llama", "w4a16", partial(_modelopt, algo="W4A16_NVFP4", size=16))
_add("modelopt-awq", "modelopt-awq", "llama", "awq", partial(_modelopt, algo="NVFP4_AWQ", size=16))
_add("modelopt-svd", "modelopt-svd", "llama", "svd", partial(_modelopt, algo="NVFP4_SVD", size=16))
_add(
    "modelopt-svd-quantizer",
    "modelopt-svd-quantizer",
    "llama",
    "svd-quantizer",
    partial(_modelopt, algo="NVFP4_SVD", size=16),
)
_add("modelopt-mixed", "modelopt-nvfp4 modelopt-fp8", "llama", {"attention": "fp8", "mlp": "nvfp4"}, _mixed)
_fused = {"attention": "nvfp4", "mlp": "nvfp4", "experts": "nvfp4-3d"}
_add("modelopt-3d-gpt-oss", "modelopt-3d modelopt-nvfp4", "gpt_oss", _fused, _nvfp4)
_add("modelopt-3d-llama4", "modelopt-3d modelopt-nvfp4", "llama4", _fused, _nvfp4)
_add(
    "modelopt-3d-per-expert",
    "modelopt-3d modelopt-nvfp4",
    "llama4",
    _fused | {"experts": "nvfp4-3d-per-expert"},
    _nvfp4,
)
_add("modelopt-fp8", "modelopt-fp8", "llama", "fp8", partial(_modelopt, algo="FP8"))
_add("modelopt-fp8-moe", "modelopt-fp8", "qwen3_moe", "fp8", partial(_modelopt, algo="FP8"))
_block = partial(_modelopt, algo="FP8_PB_WO")
_add("modelopt-fp8-block", "modelopt-fp8-block", "llama-blocks", "fp8-block", _block)
_add(
    "modelopt-fp8-block-rank4",
    "modelopt-fp8-block",
    "llama-blocks",
    "fp8-block-rank4",
    partial(_modelopt, algo="fp8_pb_wo"),
)
_add(
    "modelopt-fp8-block-inv",
    "modelopt-fp8-block",
    "llama-blocks",
    "fp8-block-inv",
    partial(_modelopt, algo="FP8_BLOCK_SCALES"),
)
_add(
    "modelopt-fp8-channel",
    "modelopt-fp8-channel",
    "llama",
    "fp8-channel",
    partial(_modelopt, algo="FP8_PER_CHANNEL_PER_TOKEN"),
)
_add("modelopt-w4a8", "modelopt-w4a8", "llama", "w4a8", partial(_modelopt, algo="W4A8_NVFP4_FP8", size=32))
_add("modelopt-mxfp4", "modelopt-mxfp4", "llama", "mxfp4", partial(_modelopt, algo="mxfp4"))
_add("modelopt-mxfp4-moe", "modelopt-mxfp4", "qwen3_moe", "mxfp4", partial(_modelopt, algo="mxfp4"))
_add("modelopt-mxfp8", "modelopt-mxfp8", "llama", "mxfp8", partial(_modelopt, algo="MXFP8", size=32))
_add("ct-nvfp4", "ct-nvfp4", "llama", "ct-nvfp4", _ct_nvfp4)
_add("ct-nvfp4-moe", "ct-nvfp4", "qwen3_moe", "ct-nvfp4", _ct_nvfp4)
_add("ct-nvfp4a16", "ct-nvfp4", "llama", "ct-nvfp4a16", partial(_ct_nvfp4, inputs=None))
_add(
    "ct-mxfp4",
    "ct-mxfp4",
    "llama",
    "ct-mxfp4",
    partial(_ct, layout="mxfp4-pack-quantized", weights=_FP4_32, inputs=None),
)
_add(
    "ct-mxfp8",
    "ct-mxfp8",
    "llama",
    "mxfp8",
    partial(
        _ct,
        layout="mxfp8-quantized",
        weights=_bits(8, "group", group_size=32),
        inputs=_bits(8, "group") | {"dynamic": True},
    ),
)
_add("ct-fp8", "ct-fp8", "llama", "ct-fp8", partial(_ct_fp8, weights=_bits(8, "tensor"), inputs=_bits(8, "tensor")))
_add(
    "ct-fp8-channel",
    "ct-fp8-channel",
    "llama",
    "ct-fp8-channel",
    partial(_ct_fp8, weights=_bits(8, "channel"), inputs=_bits(8, "token", dynamic=True)),
)
_add(
    "ct-fp8-block",
    "ct-fp8-block",
    "llama-blocks",
    "ct-fp8-block",
    partial(_ct_fp8, weights=_bits(8, "block", block_structure=[128, 128]), inputs=_bits(8, "group", dynamic=True)),
)
_add("gpt-oss-mxfp4", "gpt-oss-mxfp4", "gpt_oss", {"experts": "gpt-oss"}, _gpt_oss)
_add("deepseek-fp8", "deepseek-fp8", "deepseek_v3-blocks", "fp8-block-inv", _fp8)
_add("deepseek-fp8-bf16", "deepseek-fp8", "llama-blocks", "fp8-block-inv-bf16", _fp8)
_add("deepseek-fp8-moe", "deepseek-fp8", "qwen3_moe-blocks", "fp8-block-inv", _fp8)
_add("deepseek-fp8-ue8m0", "deepseek-fp8-ue8m0", "deepseek_v3-blocks", "fp8-ue8m0", partial(_fp8, scale_fmt="ue8m0"))
_add(
    "deepseek-v4",
    "deepseek-v4-fp8 deepseek-v4-fp4",
    "deepseek_v4",
    {"attention": "v4-fp8", "mlp": "v4-fp8", "experts": "v4-fp4"},
    partial(_fp8, scale_fmt="ue8m0", expert_dtype="fp4"),
)
_quark_mx = _spec("fp4", "per_group", 32, False) | {"scale_format": "e8m0"}
_add(
    "quark-mxfp4",
    "quark-mxfp4",
    "llama",
    "mxfp4",
    partial(_quark, weight=_quark_mx, inputs=_quark_mx | {"is_dynamic": True}),
)
_second = _spec("fp8_e4m3", "per_tensor", None, False) | {"is_scale_quant": True}
_add(
    "quark-nvfp4",
    "quark-nvfp4",
    "llama",
    "quark-nvfp4",
    partial(
        _quark,
        weight=[_spec("fp4", "per_group", 16, False), _second],
        inputs=[_spec("fp4", "per_group", 16, True), _second],
    ),
)
_quark_8 = _spec("fp8_e4m3", "per_tensor", None, False)
_add("quark-fp8", "quark-fp8", "llama", "quark-fp8", partial(_quark, weight=_quark_8, inputs=_quark_8))
_add("kv-modelopt", "modelopt-nvfp4", "llama", "nvfp4", _nvfp4, "proj")
_add("kv-modelopt-affine", "modelopt-nvfp4", "llama", "nvfp4", _nvfp4, "affine")
_add("kv-ct", "ct-nvfp4", "llama", "ct-nvfp4", _ct_nvfp4, "attention")
_add("kv-cache", "modelopt-fp8", "llama", "fp8", partial(_modelopt, algo="FP8"), "cache")
_add("kv-old", "modelopt-fp8", "llama", "fp8", partial(_modelopt, algo="FP8"), "old")
_add("comfy-fp8", "comfy-fp8", "llama", "comfy", _plain, configured=False)
_add("int-modelopt-awq", "integer", "llama", "int-modelopt-awq", partial(_modelopt, algo="W4A16_AWQ"))
_add("int-gptq", "gptq-awq", "llama", "int-gptq", partial(_plain, quant_method="gptq", bits=4, group_size=128))
_int4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
_add(
    "int-pack",
    "ct-pack-quantized",
    "llama",
    "int-pack",
    partial(_ct, layout="pack-quantized", weights=_int4, inputs=None),
)
_int8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
_add("int-int8", "integer", "llama", "int-int8", partial(_ct, layout="int-quantized", weights=_int8, inputs=None))
_add(
    "int-bnb-nf4",
    "bitsandbytes",
    "llama",
    "int-bnb-nf4",
    partial(_plain, quant_method="bitsandbytes", load_in_4bit=True),
)
_add(
    "int-bnb-int8",
    "bitsandbytes-int8",
    "llama",
    "int-bnb-int8",
    partial(_plain, quant_method="bitsandbytes", load_in_8bit=True),
)
