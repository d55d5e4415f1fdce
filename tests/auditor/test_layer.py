"""Tensors to layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.formats.base import Role
from auditor.layer import Recognised, is_kv, is_weight_scale, recognise, split
from auditor.tensorref import DTYPE_BITS, TensorRef
from tests.forge import make
from tests.layouts import LAYOUTS


def ref(name: str, dtype: str, *shape: int) -> TensorRef:
    size = DTYPE_BITS[dtype]
    for length in shape:
        size *= length
    return TensorRef(name, dtype, shape, "model.safetensors", 0, size // 8)


def recognised(**tensors: tuple[object, ...]) -> Recognised:
    return recognise(ref(f"m.{name}", *spec) for name, spec in tensors.items())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.b.weight", ("a.b", "weight")),
        ("a.b.weight.absmax", ("a.b", "weight.absmax")),
        ("a.weight_quantizer._svdquant_lora_a", ("a", "weight_quantizer._svdquant_lora_a")),
        ("weight", ("", "weight")),
        ("", ("", "")),
    ],
)
def test_split(name: str, parts: tuple[str, str]) -> None:
    assert split(name) == parts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recognises_what_the_forge_made(layout: str) -> None:
    model = make(layout)
    found = recognise(ref(name, t.dtype, *t.shape) for name, t in model.tensors.items())
    layers = {layer.name: layer for layer in found.layers}
    assert set(layers) == {made.name for made in model.layers}
    for made in model.layers:
        layer = layers[made.name]
        assert layer.codes.name == made.codes
        assert layer.scales.name == made.scales
        assert (layer.global_scale.name if layer.global_scale else "") == made.global_scale
        assert (layer.input_scale.name if layer.input_scale else "") == made.input_scale
        pre_quant = layer.get(Role.PRE_QUANT)
        assert made.kind == "int" or (pre_quant.name if pre_quant else "") == made.pre_quant
        geometry = layer.geometry()
        assert (geometry is not None) == (made.kind in ("nvfp4", "mxfp4"))
        if geometry is not None:
            assert geometry.rows * geometry.inner == model.tensors[made.scales].size
            assert geometry.unit == made.block // 2


NAMES = (
    "weight", "weight_scale", "weight_scale_2", "weight_packed", "input_scale", "weight_scale_inv", "scale", "k_scale",
    "x_blocks", "x_scales", "x", "x_weight_scale", "x_weight_scale_2", "qweight", "scales", "pre_quant_scale",
)  # fmt: skip
DTYPES = ("U8", "I8", "F8_E4M3", "F8_E8M0", "F32", "BF16", "I32", "F8_E5M2", "F4")
SHAPES = ((), (1,), (4, 8), (4, 1), (4,), (2, 4, 8), (0, 8))


@given(st.dictionaries(st.sampled_from(NAMES), st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES)), max_size=8))
def test_every_tensor_ends_in_exactly_one_place(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Nothing is claimed twice, nothing is lost: what is not claimed is unclaimed, KV, plain, or part of a dispute."""
    refs = [ref(f"m.{name}", dtype, *shape) for name, (dtype, shape) in tensors.items()]
    found = recognise(refs)
    places = [part.name for layer in found.layers for part in layer.parts.values()]
    assert set(places) == set(found.roles)
    if not found.ambiguous:
        assert len(places) == len(set(places))
        apart = [r.name for r in (*found.unclaimed, *found.kv, *found.plain)]
        assert sorted(places + apart) == sorted(r.name for r in refs)
    for layer in found.layers:
        layer.geometry()
        assert min(layer.dims()) >= 0


def test_two_weights_that_share_a_scale_are_a_dispute() -> None:
    found = recognise([ref("m.weight", "U8", 4, 8), ref("m.weight_packed", "I32", 4, 1), ref("m.weight_scale", "F32")])
    assert not found.layers
    assert [(r.name, names) for r, names in found.ambiguous] == [
        ("m.weight_packed", ("ct-pack-quantized", "integer")),
        ("m.weight", ("ct-pack-quantized", "integer")),
    ]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("m.k_proj.k_scale", True), ("m.self_attn.v_scale", True), ("m.k_cache.scale", True), ("m.kv_scale", True),
        ("m.k_proj.output_scale", True), ("m.q_proj.output_scale", False), ("m.cache.scale", False),
        ("m.k_proj.weight_scale", False),
    ],
)  # fmt: skip
def test_is_kv(name: str, verdict: bool) -> None:
    assert is_kv(*split(name)) is verdict


@pytest.mark.parametrize(
    ("leaf", "verdict"),
    [("weight_scale", True), ("weight_scale_inv", True), ("scale", True), ("scale_weight", True),
     ("input_scale", False), ("input_global_scale", False), ("k_scale", False), ("pre_quant_scale", False)],
)  # fmt: skip
def test_is_weight_scale(leaf: str, verdict: bool) -> None:
    assert is_weight_scale(leaf) is verdict


def test_shapes_that_do_not_agree_have_no_geometry() -> None:
    sound = recognised(weight_packed=("U8", 4, 16), weight_scale=("U8", 4, 1)).layers[0]
    assert sound.geometry() == (4, 1, 16)
    assert recognised(weight_packed=("U8", 4, 16), weight_scale=("U8", 4, 2)).layers[0].geometry() is None
    assert recognised(weight_packed=("U8", 16), weight_scale=("U8",)).layers[0].geometry() == (1, 1, 16)


def test_two_formats_on_one_tensor_are_told() -> None:
    found = recognised(weight=("F8_E4M3", 128, 128), weight_scale=("F32",), weight_scale_inv=("F32", 1, 1))
    assert [names for _, names in found.ambiguous] == [("deepseek-fp8", "modelopt-fp8")]
    assert not found.layers
    assert not found.unclaimed


def test_a_fused_tensor_called_weight_is_a_module() -> None:
    """X.weight beside X.weight_scale is no fused expert tensor of the stem "weight"."""
    assert recognised(weight=("F8_E4M3", 4, 8), weight_scale=("F32", 4)).layers[0].name == "m"
