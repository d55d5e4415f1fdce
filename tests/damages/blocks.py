"""Block scales: NaN, underflow, sign, saturation."""

from __future__ import annotations

from auditor.audit import Depth
from tests.damages.harness import (
    LIVE,
    ZERO,
    Done,
    Pick,
    damage,
    flats,
    is_gate,
    kind,
    members,
    saturate,
    set_block,
    set_scale,
)
from tests.encode import Made
from tests.forge import Model


@damage("D01 content lost", kind("nvfp4"))
def _lost(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_scale(model, layer.scales, flat, pick((0x7F, 0xFF)))
        set_block(model, layer, flat, 0x77)
    return Done().say("SCL101", layer.scales, hit)


@damage("D01 over zeros", kind("nvfp4"))
def _nan_zero(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_scale(model, layer.scales, flat, pick((0x7F, 0xFF)))
        set_block(model, layer, flat, pick(ZERO))
    return Done().say("SCL101", layer.scales, hit)


@damage("D01 overflow", kind("nvfp4"))
def _nan_other(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_scale(model, layer.scales, flat, pick((0x7F, 0xFF)))
        set_block(model, layer, flat, [pick(LIVE) for _ in range(layer.block // 2 - 1)] + [0x12])
    return Done().say("SCL101", layer.scales, hit)


@damage("D10 underflow", kind("nvfp4"))
def _underflow(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_scale(model, layer.scales, flat, 0)
        set_block(model, layer, flat, [*(pick(ZERO) for _ in range(layer.block // 2 - 1)), pick(LIVE)])
    return Done().say("SCL102", layer.scales, hit)


@damage("D11 sign", kind("nvfp4"))
def _sign(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_scale(model, layer.scales, flat, pick((0x80, 0xFE, *range(0x80, 0xFF))))
    return Done().say("SCL103", layer.scales, hit)


@damage("D33 hidden saturation", kind("nvfp4"))
def _saturated(model: Model, layer: Made, pick: Pick) -> Done:
    top = pick((8, 9, 20))
    return Done().say("SCL104", layer.scales, saturate(model, layer, top, pick((0, 1, top - 1))))


@damage("D34 shared block scales", lambda m: [x for x in kind("nvfp4")(m) if is_gate(x)])
def _shared_scales(model: Model, layer: Made, pick: Pick) -> Done:
    gate, up = members(model, layer)
    source = pick((gate, up))
    for target in (gate, up):
        model.tensors[target.scales] = model.tensors[source.scales]
    return Done().say("SCL105", gate.scales)


@damage("SCL109 papered over", kind("nvfp4"), Depth.FULL)
def _papered(model: Model, layer: Made, pick: Pick) -> Done:
    hit = flats(pick, model.tensors[layer.scales].size)
    for flat in hit:
        set_block(model, layer, flat, 0x77)
    return Done().say("SCL109", layer.scales, hit)
