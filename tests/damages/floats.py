"""E8M0 scales, FP8 scales, and NaN in weights."""

from __future__ import annotations

from auditor.audit import Depth
from tests.damages.harness import BAD, Done, Pick, damage, first, flats, kind, set_float, set_scale
from tests.encode import Made
from tests.forge import Model


@damage("D23 E8M0 NaN", kind("mxfp4", "mxfp8", "fp8e8m0"))
def _nan_e8m0(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_scale(model, layer.scales, flat, 255)
    return Done().say("SCL106", layer.scales, hit)


@damage("FP8 scale", kind("fp8"), Depth.SCALARS)
def _bad_fp8_scale(model: Model, layer: Made, pick: Pick) -> Done:
    flat = pick(range(model.tensors[layer.scales].size))
    set_float(model, layer.scales, flat, pick(BAD))
    return Done().say("SCL108", layer.scales, [flat])


@damage("D36 zero FP8 weight", kind("fp8"))
def _zero_fp8(model: Model, layer: Made, pick: Pick) -> Done:
    tensor = model.tensors[layer.scales]
    model.tensors[layer.scales] = tensor._replace(data=bytes(len(tensor.data)))
    model.fill(layer.codes, pick((0x7F, 0xFF)))
    return Done().say("SCL108", layer.scales).say("WGT102", layer.codes, range(8))


@damage("D36 one zero row or block", lambda m: [x for x in kind("fp8")(m) if m.tensors[x.scales].size > 1])
def _zero_fp8_block(model: Model, layer: Made, pick: Pick) -> Done:
    set_float(model, layer.scales, 0, 0.0)
    byte = bytes([pick((0x7F, 0xFF))])
    for flat in range(8):
        model.poke(layer.codes, flat, byte)
    return Done().say("SCL108", layer.scales, [0]).say("WGT102", layer.codes, range(8))


@damage("D21 FP8 without scale", kind("fp8", "mxfp8", "fp8e8m0"), Depth.HEADERS)
def _no_fp8_scale(model: Model, layer: Made, pick: Pick) -> Done:
    del model.tensors[layer.scales]
    return Done().say("FMT103", layer.codes)


@damage("D32 FP8 NaN", kind("fp8", "mxfp8", "fp8e8m0"), Depth.FULL)
def _fp8_nan(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.codes].size)
    for flat in hit:
        set_scale(model, layer.codes, flat, pick((0x7F, 0xFF)))
    return Done().say("WGT101", layer.codes, hit)


@damage("D32 BF16 NaN", first, Depth.FULL)
def _bf16_nan(model: Model, layer: Made, pick: Pick) -> Done:
    plain = [n for n, t in model.tensors.items() if t.dtype == "BF16" and n.endswith((".weight", "_bias", "sinks"))]
    name = pick(sorted(n for n in plain if n not in {x.scales for x in model.layers}))
    hit = flats(pick, model.tensors[name].size)
    for flat in hit:
        model.poke(name, 2 * flat, pick((b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\x81\x7f", b"\xff\xff")))
    return Done().say("WGT101", name, hit)
