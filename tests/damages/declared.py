"""The KV cache and the configuration."""

from __future__ import annotations

import numpy as np

from auditor.audit import Depth
from tests.damages.harness import BAD, Done, Pick, damage, kind, kv_scales, plain_head, set_float
from tests.encode import Made
from tests.forge import Model
from tests.raw import raw


@damage("D27 KV scale", lambda m: m.layers[:1] if kv_scales(m) else [], Depth.SCALARS)
def _badkv_scales(model: Model, layer: Made, pick: Pick) -> Done:
    name = pick(kv_scales(model))
    set_float(model, name, 0, pick(BAD))
    return Done().say("KVC101", name, [0])


@damage("D27 KV shape", lambda m: m.layers[:1] if kv_scales(m) else [], Depth.SCALARS)
def _kv_shape(model: Model, layer: Made, pick: Pick) -> Done:
    name = pick(kv_scales(model))
    model.tensors[name] = raw("F32", np.full(4, 0.02, np.float32))
    return Done().say("KVC101", name)


@damage("D27 KV partner", lambda m: m.layers[:1] if len(kv_scales(m)) > 2 else [], Depth.HEADERS)
def _kv_partner(model: Model, layer: Made, pick: Pick) -> Done:
    name = pick(kv_scales(model))
    del model.tensors[name]
    side, other = (".v_", ".k_") if ".v_" in name else (".k_", ".v_")
    partner = name.replace(side, other)
    return Done().say("KVC102", partner)


@damage(
    "D27 KV bias",
    lambda m: m.layers[:1] if any(n.endswith("_bias") and "proj" in n for n in m.tensors) and kv_scales(m) else [],
    Depth.SCALARS,
)
def _kv_bias(model: Model, layer: Made, pick: Pick) -> Done:
    name = pick(sorted(n for n in model.tensors if n.endswith(("k_bias", "v_bias"))))
    set_float(model, name, 3, pick((float("nan"), float("inf"))))
    return Done().say("KVC101", name, [3])


def _listed(model: Model) -> list[list[str]]:
    keys = ("ignore", "exclude_modules", "exclude", "modules_to_not_convert", "ignored_layers")
    return [part[key] for part in model.quantization() for key in keys if isinstance(part.get(key), list)]


@damage(
    "D15 excluded",
    lambda m: (
        kind("nvfp4", "mxfp4", "fp8")(m) if _listed(m) and "gpt-oss" not in m.name and "mixed" not in m.name else []
    ),
    Depth.HEADERS,
)
def _excluded(model: Model, layer: Made, pick: Pick) -> Done:
    for names in _listed(model):
        names.append(layer.name)
    return Done().say("CFG102", layer.codes)


@damage(
    "D16 left out",
    lambda m: [
        x for x in m.layers if x.name.endswith("o_proj") and m.name in ("modelopt-nvfp4", "ct-nvfp4", "modelopt-fp8")
    ],
    Depth.HEADERS,
)
def _left_out(model: Model, layer: Made, pick: Pick) -> Done:
    for part in (layer.codes, layer.scales, layer.global_scale, layer.input_scale):
        model.tensors.pop(part, None)
    name = f"{layer.name}.weight"
    model.tensors[name] = raw("BF16", np.linspace(-1, 1, 64 * 64).reshape(64, 64))
    return Done().say("CFG103", name)


@damage(
    "D17 other algorithm",
    lambda m: m.layers[:1] if m.name in ("modelopt-nvfp4", "modelopt-nvfp4-old", "modelopt-fp8") else [],
    Depth.HEADERS,
)
def _other_algorithm(model: Model, layer: Made, pick: Pick) -> Done:
    for part in model.quantization():
        part["quant_algo"] = pick(("FP8",) if layer.kind == "nvfp4" else ("NVFP4",))
        part.pop("group_size", None)
    return Done().say("CFG104", "*")


@damage("D25 old bias", lambda m: m.layers[:1] if m.name == "ct-mxfp4" else [], Depth.HEADERS)
def _old_bias(model: Model, layer: Made, pick: Pick) -> Done:
    model.config["quantization_config"]["version"] = pick(("0.13.0", "0.12.3.a20251203"))
    return Done().say("CFG106", "config.json")


@damage("D30 no head", lambda m: m.layers[:1] if plain_head(m) else [], Depth.HEADERS)
def _noplain_head(model: Model, layer: Made, pick: Pick) -> Done:
    del model.tensors["lm_head.weight"]
    return Done().say("CFG107", "config.json")


@damage(
    "D35 garbled pattern", lambda m: m.layers[:1] if m.name in ("modelopt-nvfp4", "ct-nvfp4") else [], Depth.HEADERS
)
def _garbled(model: Model, layer: Made, pick: Pick) -> Done:
    for names in _listed(model):
        names.append(f"vision_tower.{pick((chr(0), chr(7), chr(10)))}*")
    done = Done().say("CFG108", "config.json")
    return done.say("CFG108", "hf_quant_config.json") if model.hf_quant else done


@damage("D38 foreign names", lambda m: m.layers[:1] if "mixtral" in m.name else [], Depth.HEADERS)
def _foreign(model: Model, layer: Made, pick: Pick) -> Done:
    for name in list(model.tensors):
        if ".w2." in name:
            model.tensors[name.replace(".w2.", ".down_proj.")] = model.tensors.pop(name)
    at = "model.layers.0.block_sparse_moe.experts.0.down_proj"
    return Done().say("CFG110", f"{at}.input_scale")
