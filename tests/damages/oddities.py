"""Legal checkpoints that look damaged."""

from __future__ import annotations

import numpy as np

from tests.damages.harness import (
    LIVE,
    ZERO,
    Done,
    Pick,
    flats,
    is_gate,
    kind,
    kv_scales,
    members,
    oddity,
    plain_head,
    saturate,
    set_block,
    set_float,
    set_scale,
    value_of,
)
from tests.encode import Made
from tests.forge import Model


@oddity("zero blocks", kind("nvfp4"))
def _zero_blocks(model: Model, layer: Made, pick: Pick) -> Done:
    """Zero blocks as each exporter stores them: dynamic 0x38, static 0x7E, MSE 0x01, or 0."""
    byte = pick((0x38, 0x7E, 0x01, 0x00))
    size = model.tensors[layer.scales].size
    for flat in pick((range(1), range(12), range(0, size, 2))):
        set_scale(model, layer.scales, flat, byte)
        set_block(model, layer, flat, pick(ZERO))
    return Done()


@oddity("zero MX blocks", kind("mxfp4"))
def _zero_mx(model: Model, layer: Made, pick: Pick) -> Done:
    for flat in flats(pick, model.tensors[layer.scales].size):
        set_scale(model, layer.scales, flat, pick((0, 1, 127, 254)))
        set_block(model, layer, flat, pick(ZERO))
    return Done()


@oddity("D24 E8M0 zero over live codes", kind("mxfp4"))
def _tiny_mx(model: Model, layer: Made, pick: Pick) -> Done:
    for flat in flats(pick, model.tensors[layer.scales].size):
        set_scale(model, layer.scales, flat, 0)
        set_block(model, layer, flat, pick(LIVE))
    return Done()


@oddity("zero tensor, sound", kind("nvfp4"))
def _zero_tensor(model: Model, layer: Made, pick: Pick) -> Done:
    scale, byte, value = pick((0x38, 0x7E, 0x01, 0x00, 0x20)), pick(ZERO), pick((1.0, 2**-7, 2**-23))
    for member in members(model, layer):
        model.fill(member.codes, byte)
        model.fill(member.scales, scale)
        for flat in range(model.tensors[member.global_scale].size):
            set_float(model, member.global_scale, flat, 1.0 if layer.divides else value)
    return Done()


@oddity("four over six", kind("nvfp4"))
def _four_over_six(model: Model, layer: Made, pick: Pick) -> Done:
    """No scale above 384, and many equal ones."""
    scales = np.minimum(model.tensors[layer.scales].array(), pick((0x78, 0x7C, 0x70)))
    model.tensors[layer.scales] = model.tensors[layer.scales]._replace(data=scales.tobytes())
    return Done()


@oddity("seven saturated", kind("nvfp4"))
def _seven(model: Model, layer: Made, pick: Pick) -> Done:
    top, near = pick(((1, 0), (7, 0), (7, 6), (8, 8), (12, 12), (12, 20)))
    saturate(model, layer, top, near)
    return Done()


@oddity("scales of few values coincide", lambda m: [x for x in kind("nvfp4")(m) if is_gate(x)])
def _few_values(model: Model, layer: Made, pick: Pick) -> Done:
    gate, up = members(model, layer)
    size = model.tensors[gate.scales].size
    scales = np.resize(np.arange(0x40, 0x40 + pick((1, 2, 7)), dtype=np.uint8), size)
    for member in (gate, up):
        model.tensors[member.scales] = model.tensors[member.scales]._replace(data=scales.tobytes())
    return Done()


@oddity("constant inputs", kind("nvfp4", "fp8", needs="input_scale"))
def _constant(model: Model, layer: Made, pick: Pick) -> Done:
    """A constant-amax recipe writes one number everywhere: 1.0, or a placeholder for all."""
    value = pick((1.0, 2688.0) if layer.divides else (1.0, 0.5 / 2688, 1 / 448))
    for each in model.layers:
        for flat in range(model.tensors[each.input_scale].size if each.input_scale else 0):
            set_float(model, each.input_scale, flat, value)
    return Done()


@oddity("FP8 fused inputs differ", lambda m: [x for x in kind("fp8", needs="input_scale")(m) if x.fused])
def _fp8_inputs(model: Model, layer: Made, pick: Pick) -> Done:
    set_float(model, layer.input_scale, 0, value_of(model, layer.input_scale) * pick((0.5, 2.0)))
    return Done()


@oddity("FP8 zero rows", lambda m: kind("fp8")(m))
def _fp8_zero(model: Model, layer: Made, pick: Pick) -> Done:
    """A zero scale over zero codes."""
    tensor = model.tensors[layer.scales]
    model.fill(layer.codes, pick((0x00, 0x80)))
    model.tensors[layer.scales] = tensor._replace(data=bytes(len(tensor.data)))
    return Done()


@oddity("E8M0 dtype", kind("mxfp4", "mxfp8"))
def _e8m0_dtype(model: Model, layer: Made, pick: Pick) -> Done:
    for each in model.layers:
        if each.kind in ("mxfp4", "mxfp8"):
            model.tensors[each.scales] = model.tensors[each.scales]._replace(dtype="F8_E8M0")
    return Done()


@oddity("scalars of shape [1]", kind("nvfp4", "fp8"))
def _ones(model: Model, layer: Made, pick: Pick) -> Done:
    for name, tensor in model.tensors.items():
        if tensor.shape == () and tensor.dtype in ("F32", "BF16"):
            model.tensors[name] = tensor._replace(shape=(1,))
    return Done()


@oddity("KV scale 1", lambda m: m.layers[:1] if kv_scales(m) else [])
def _kv_one(model: Model, layer: Made, pick: Pick) -> Done:
    for name in kv_scales(model):
        set_float(model, name, 0, 1.0)
    return Done()


@oddity("KV declared, none stored", lambda m: m.layers[:1] if kv_scales(m) else [])
def _kv_none(model: Model, layer: Made, pick: Pick) -> Done:
    for name in [n for n in model.tensors if n.endswith(("k_bias", "v_bias")) or n in kv_scales(model)]:
        del model.tensors[name]
    return Done()


@oddity("tied head", lambda m: m.layers[:1] if plain_head(m) else [])
def _tied(model: Model, layer: Made, pick: Pick) -> Done:
    model.config["tie_word_embeddings"] = True
    if pick((True, False)):
        del model.tensors["lm_head.weight"]
    else:
        model.tensors["lm_head.weight"] = model.tensors["model.embed_tokens.weight"]
    return Done()
