"""Global and activation scales."""

from __future__ import annotations

import numpy as np

from auditor.audit import Depth
from tests.damages.harness import BAD, Done, Pick, damage, fused_first, kind, members, set_float, value_of
from tests.encode import Made
from tests.forge import Model
from tests.raw import raw


@damage("D02 global", kind("nvfp4", needs="global_scale"), Depth.SCALARS)
def _bad_global(model: Model, layer: Made, pick: Pick) -> Done:
    flat = pick(range(model.tensors[layer.global_scale].size))
    set_float(model, layer.global_scale, flat, pick(BAD))
    done = Done().say("GLB101", layer.global_scale, [flat])
    fused = fused_first(model, layer, "global_scale")
    return done.say("GLB102", fused) if fused else done


@damage("D02 zero weight", kind("nvfp4"))
def _zero_weight(model: Model, layer: Made, pick: Pick) -> Done:
    """What exporters make of an all-zero weight, by the dynamic and by the static path."""
    byte = pick((0x7F, 0xFF, 0x7E))
    model.fill(layer.scales, byte)
    model.fill(layer.codes, 0x77)
    for flat in range(model.tensors[layer.global_scale].size):
        set_float(model, layer.global_scale, flat, float("inf") if layer.divides else 0.0)
    done = Done().say("GLB101", layer.global_scale).say("SCL104" if byte == 0x7E else "SCL101", layer.scales)
    fused = fused_first(model, layer, "global_scale")
    return done.say("GLB102", fused) if fused else done


@damage("D03 fused globals", lambda m: [x for x in kind("nvfp4")(m) if x.fused], Depth.SCALARS)
def _unlike_globals(model: Model, layer: Made, pick: Pick) -> Done:
    value = np.float32(value_of(model, layer.global_scale))
    new = pick((np.nextafter(value, np.float32(1)), value * np.float32(2), value * np.float32(0.8), value / 10))
    set_float(model, layer.global_scale, 0, float(new))
    tensor = fused_first(model, layer, "global_scale")
    assert tensor is not None
    return Done().say("GLB102", tensor, [0])


@damage("D26 inverted", kind("nvfp4"), Depth.SCALARS)
def _inverted(model: Model, layer: Made, pick: Pick) -> Done:
    done = Done()
    for member in members(model, layer):
        size = model.tensors[member.global_scale].size
        for flat in range(size):
            set_float(model, member.global_scale, flat, 1 / value_of(model, layer.global_scale, flat))
        done.say("GLB103", member.global_scale, range(size))
    # The inverse was taken of the first member each time: make all alike again.
    for member in members(model, layer):
        model.tensors[member.global_scale] = model.tensors[layer.global_scale]
    return done


@damage("D22 global dtype", kind("nvfp4"), Depth.HEADERS)
def _global_dtype(model: Model, layer: Made, pick: Pick) -> Done:
    part = pick(("global_scale", *(["input_scale"] if layer.input_scale else [])))
    name = getattr(layer, part)
    old = model.tensors[name]
    model.tensors[name] = raw(pick(("BF16", "F64")), old.values(), old.shape)
    return Done().say("FMT108", name)


@damage(
    "D22 block scale dtype",
    lambda m: [x for x in m.layers if x.scales.endswith("_inv") and x.kind == "fp8"],
    Depth.HEADERS,
)
def _inv_dtype(model: Model, layer: Made, pick: Pick) -> Done:
    old = model.tensors[layer.scales]
    model.tensors[layer.scales] = raw("F16", old.values() * 1000, old.shape)
    return Done().say("FMT108", layer.scales)


def _input_done(model: Model, layer: Made, code: str, flat: int) -> Done:
    done = Done().say(code, layer.input_scale, [flat])
    fused = fused_first(model, layer, "input_scale") if layer.kind == "nvfp4" else None
    return done.say("ACT102", fused) if fused else done


@damage("D04 fused inputs", lambda m: [x for x in kind("nvfp4", needs="input_scale")(m) if x.fused], Depth.SCALARS)
def _unlike_inputs(model: Model, layer: Made, pick: Pick) -> Done:
    value = np.float32(value_of(model, layer.input_scale))
    new = pick((np.nextafter(value, np.float32(1)), value * np.float32(2), value * np.float32(0.8)))
    set_float(model, layer.input_scale, 0, float(new))
    tensor = fused_first(model, layer, "input_scale")
    assert tensor is not None
    return Done().say("ACT102", tensor, [0])


@damage("D05 input", kind("nvfp4", "fp8", needs="input_scale"), Depth.SCALARS)
def _bad_input(model: Model, layer: Made, pick: Pick) -> Done:
    tensor = model.tensors[layer.input_scale]
    tiny = (
        (1e-39,)
        if tensor.dtype == "BF16"
        else (1e-40, 1.4e-45, float(np.nextafter(np.float32(2**-126), np.float32(0))))
    )
    flat = pick(range(tensor.size))
    set_float(model, layer.input_scale, flat, pick((*BAD, *tiny)))
    return _input_done(model, layer, "ACT101", flat)


@damage("D06 missing input", kind("nvfp4", "fp8", needs="input_scale"), Depth.HEADERS)
def _missing_input(model: Model, layer: Made, pick: Pick) -> Done:
    del model.tensors[layer.input_scale]
    return Done() if _undeclared(model) else Done().say("ACT103", layer.codes)


def _undeclared(model: Model) -> bool:
    return "quantization_config" not in model.config and model.hf_quant is None


@damage(
    "D07 no inputs", lambda m: [] if _undeclared(m) else kind("nvfp4", "fp8", needs="input_scale")(m)[:1], Depth.HEADERS
)
def _no_inputs(model: Model, layer: Made, pick: Pick) -> Done:
    for each in model.layers:
        model.tensors.pop(each.input_scale, None)
    file = "config.json" if "quantization_config" in model.config else "hf_quant_config.json"
    return Done().say("CFG101", file)


@damage(
    "D08 divisor 1 among experts",
    lambda m: [x for x in kind("nvfp4", needs="input_scale")(m) if x.divides and x.peers],
    Depth.SCALARS,
)
def _divisor_one(model: Model, layer: Made, pick: Pick) -> Done:
    set_float(model, layer.input_scale, 0, 1.0)
    return _input_done(model, layer, "ACT104", 0)


@damage(
    "D09 placeholder among experts",
    lambda m: [x for x in kind("nvfp4", needs="input_scale")(m) if not x.divides and x.peers],
    Depth.SCALARS,
)
def _placeholder(model: Model, layer: Made, pick: Pick) -> Done:
    """Peers were calibrated to 40 and more: either placeholder is more than 4 times smaller."""
    for name in layer.peers:
        for member in members(model, model.layer(name)):
            set_float(model, member.input_scale, 0, 40 / 2688)
    set_float(model, layer.input_scale, 0, pick((0.5 / 2688, 1 / 448)))
    return _input_done(model, layer, "ACT104", 0)


@damage("D37 uninitialised", kind("nvfp4", "fp8", needs="input_scale"), Depth.SCALARS)
def _uninitialised(model: Model, layer: Made, pick: Pick) -> Done:
    """Numbers that memory holds: positive, finite and absurd."""
    amax = pick((9e-7, 1.1e6, 1e-30, 1e30))
    flat = pick(range(model.tensors[layer.input_scale].size))
    set_float(model, layer.input_scale, flat, layer.unit / amax if layer.divides else amax / layer.unit)
    return _input_done(model, layer, "ACT105", flat)


@damage(
    "D37 far from its peers", lambda m: [x for x in kind("nvfp4", needs="input_scale")(m) if x.peers], Depth.SCALARS
)
def _far(model: Model, layer: Made, pick: Pick) -> Done:
    """The peers' amaxes lie between 2 and 4: 5000 and 0.001 are plausible by themselves."""
    amax = pick((5000.0, 0.001, 1e5))
    set_float(model, layer.input_scale, 0, layer.unit / amax if layer.divides else amax / layer.unit)
    return _input_done(model, layer, "ACT105", 0)


@damage("ACT106 pre_quant_scale", kind("nvfp4", needs="pre_quant"))
def _bad_pre_quant(model: Model, layer: Made, pick: Pick) -> Done:
    flat = pick(range(model.tensors[layer.pre_quant].size))
    value = pick(BAD)
    for member in members(model, layer):  # fused siblings share the vector
        set_float(model, member.pre_quant, flat, value)
    done = Done()
    for member in members(model, layer):
        done.say("ACT106", member.pre_quant, [flat])
    return done


@damage("ACT107 unlike pre_quant_scale", lambda m: [x for x in kind("nvfp4", needs="pre_quant")(m) if x.fused])
def _unlike_pre_quant(model: Model, layer: Made, pick: Pick) -> Done:
    flat = pick(range(model.tensors[layer.pre_quant].size))
    set_float(model, layer.pre_quant, flat, 3.5)
    tensor = fused_first(model, layer, "pre_quant")
    assert tensor is not None
    return Done().say("ACT107", tensor)
