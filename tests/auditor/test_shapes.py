"""Shapes of scales that fit codes, and those that tell what went wrong."""

from __future__ import annotations

import pytest

from auditor.declared import Declared
from auditor.layer import QuantizedLayer, recognise
from auditor.shapes import expected_scales, is_swizzled, is_transposed, misfit
from tests.auditor.test_layer import ref


def nvfp4(codes: tuple[int, ...], scales: tuple[int, ...]) -> QuantizedLayer:
    parts = (
        ref("m.weight_packed", "U8", *codes),
        ref("m.weight_scale", "F8_E4M3", *scales),
        ref("m.weight_global_scale", "F32", 1),
    )
    return recognise(parts).layers[0]


@pytest.mark.parametrize(
    ("codes", "scales", "fits", "swizzled", "transposed"),
    [
        ((64, 32), (64, 4), True, False, False),
        ((64, 32), (128, 4), False, True, False),
        ((64, 32), (512,), False, True, False),
        ((128, 32), (128, 4), True, False, False),  # the padded shape is the true one
        ((130, 40), (256, 8), False, True, False),
        ((32, 64), (64, 4), False, False, True),
        ((32, 32), (32, 4), True, False, False),
        ((64, 32), (64, 2), False, False, False),
        ((64, 32), (63, 4), False, False, False),
        ((1, 8), (1, 1), True, False, False),
        ((0, 32), (0, 4), True, False, False),
        ((2, 64, 32), (2, 64, 4), True, False, False),
        ((2, 64, 32), (2, 128, 4), False, True, False),
        ((64,), (8,), True, False, False),
    ],
)
def test_nvfp4(codes: tuple[int, ...], scales: tuple[int, ...], fits: bool, swizzled: bool, transposed: bool) -> None:
    layer = nvfp4(codes, scales)
    wanted = expected_scales(layer, Declared())
    assert wanted is not None
    assert (scales in wanted) is fits
    assert is_swizzled(layer) is swizzled
    assert is_transposed(layer) is transposed
    assert misfit(layer, Declared()) is not fits


@pytest.mark.parametrize(
    ("codes", "scales", "wanted"),
    [((192, 208), (2, 2), ((2, 2),)), ((192, 208), (3, 5), ((2, 2),)), ((256, 256), (4, 4), ((4, 4),))],
)
def test_block_fp8(codes: tuple[int, ...], scales: tuple[int, ...], wanted: tuple[tuple[int, ...], ...]) -> None:
    parts = (ref("m.weight", "F8_E4M3", *codes), ref("m.weight_scale_inv", "F32", *scales))
    assert expected_scales(recognise(parts).layers[0], Declared()) == wanted


def test_any_shape_may_be_right_where_a_number_is_for_all() -> None:
    parts = (ref("m.weight", "F8_E4M3", 8, 8), ref("m.weight_scale", "F32"))
    assert expected_scales(recognise(parts).layers[0], Declared()) is None
