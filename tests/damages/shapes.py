"""Shapes, dtypes and names."""

from __future__ import annotations

import numpy as np

from auditor.audit import Depth
from tests.damages.harness import Done, Pick, damage, first, kind
from tests.encode import Made
from tests.forge import Model
from tests.raw import Raw, raw


def _fp4_2d(model: Model) -> list[Made]:
    return [
        x for x in kind("nvfp4", "mxfp4")(model) if len(model.tensors[x.codes].shape) == 2 and "w4a8" not in model.name
    ]


@damage("D12 half of the scales", lambda m: [x for x in kind("nvfp4")(m) if x.block == 16], Depth.HEADERS)
def _half(model: Model, layer: Made, pick: Pick) -> Done:
    shape = list(model.tensors[layer.scales].shape)
    axis = -2 if layer.transposed else -1
    shape[axis] //= 2
    model.reshape(layer.scales, tuple(shape))
    return Done().say("FMT105", layer.scales)


@damage("D12 other shape", kind("nvfp4", "mxfp4", "mxfp8"), Depth.HEADERS)
def _shape(model: Model, layer: Made, pick: Pick) -> Done:
    shape = list(model.tensors[layer.scales].shape)
    shape[pick((-1, -2))] += pick((1, 3))
    model.reshape(layer.scales, tuple(shape))
    done = Done().say("FMT105", layer.scales)
    # One scale per 32 weights tells W4A8 from NVFP4; any other shape is NVFP4, which is not what is declared.
    return done.say("CFG104", layer.codes) if "w4a8" in model.name else done


@damage("D13 swizzled", lambda m: [x for x in _fp4_2d(m) if _padded(m, x) != m.tensors[x.scales].shape], Depth.HEADERS)
def _swizzled(model: Model, layer: Made, pick: Pick) -> Done:
    model.reshape(layer.scales, _padded(model, layer))
    return Done().say("FMT106", layer.scales)


def _padded(model: Model, layer: Made) -> tuple[int, int]:
    rows, columns = model.tensors[layer.scales].shape
    return -(-rows // 128) * 128, -(-columns // 4) * 4


@damage("D14 transposed", lambda m: [x for x in _fp4_2d(m) if len(set(m.tensors[x.codes].shape)) == 2], Depth.HEADERS)
def _transposed(model: Model, layer: Made, pick: Pick) -> Done:
    codes = model.tensors[layer.codes]
    model.tensors[layer.codes] = Raw(codes.dtype, codes.shape[::-1], codes.array().T.tobytes())
    return Done().say("FMT107", layer.codes)


@damage("FMT109 several numbers", kind("nvfp4", needs="global_scale"), Depth.HEADERS)
def _many(model: Model, layer: Made, pick: Pick) -> Done:
    part = pick(("global_scale", *(["input_scale"] if layer.input_scale else [])))
    name = getattr(layer, part)
    model.tensors[name] = raw("F32", np.resize(model.tensors[name].values(), 7))
    return Done().say("FMT109", name)


@damage("FMT109 0-d in compressed-tensors", lambda m: [x for x in m.layers if x.divides], Depth.HEADERS)
def _zero_d(model: Model, layer: Made, pick: Pick) -> Done:
    name = pick([n for n in (layer.global_scale, layer.input_scale) if n])
    model.tensors[name] = model.tensors[name]._replace(shape=())
    return Done().say("FMT109", name)


@damage("FMT102 part missing", kind("nvfp4", "mxfp4"), Depth.HEADERS)
def _part_missing(model: Model, layer: Made, pick: Pick) -> Done:
    del model.tensors[pick([n for n in (layer.scales, layer.global_scale) if n])]
    return Done().say("FMT102", layer.codes)


@damage("FMT102 unknown tensor", first, Depth.HEADERS)
def _unknown(model: Model, layer: Made, pick: Pick) -> Done:
    parent = layer.name.rpartition(".")[0]
    name = f"{parent}.strange.{pick(('weight', 'codes', 'qdata'))}"
    model.tensors[name] = Raw(pick(("U8", "I8")), (4, 8), bytes(range(32)))
    return Done().say("FMT102", name)


@damage("FMT104 orphan scale", first, Depth.HEADERS)
def _orphan(model: Model, layer: Made, pick: Pick) -> Done:
    parent = layer.name.rpartition(".")[0]
    name = f"{parent}.gone.{pick(('weight_scale', 'weight_scale_2', 'input_scale', 'weight_scale_inv'))}"
    model.tensors[name] = raw("F32", np.float32(0.5))
    return Done().say("FMT104", name)


@damage("FMT101 two layouts", lambda m: [x for x in kind("fp8")(m) if x.scales.endswith("weight_scale")], Depth.HEADERS)
def _two_layouts(model: Model, layer: Made, pick: Pick) -> Done:
    rows, columns = model.tensors[layer.codes].shape
    grid = (-(-rows // 128), -(-columns // 128))
    model.tensors[layer.codes + "_scale_inv"] = raw("F32", np.full(grid, 0.01, np.float32))
    return Done().say("FMT101", layer.codes)


@damage("FMT111 swapped nibbles", lambda m: [x for x in kind("nvfp4")(m) if not x.transposed], Depth.HEADERS)
def _swapped(model: Model, layer: Made, pick: Pick) -> Done:
    name = f"{layer.name}.comfy_quant"
    model.tensors[name] = Raw("U8", (4,), b"nv4\0")
    return Done().say("FMT111", name)
