"""Scales by what lies under them, against a definition that reads everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor import blocks
from auditor.blocks import Kind, Under, classify
from auditor.layer import recognise
from auditor.tensorref import TensorRef

FP4 = (0x00, 0x77, 0x88, 0x80, 0x70, 0x12)
E4M3_BYTES = (0x00, 0x7E, 0x7F, 0xFF, 0x80, 0xFE, 0x38)
E8M0_BYTES = (0x00, 0xFF, 0x7F, 0xFE)


def kind_of(byte: int, e4m3: bool) -> Kind | None:
    if byte == 0:
        return Kind.ZERO
    if not e4m3:
        return Kind.NAN if byte == 255 else None
    if byte & 0x7F == 0x7F:
        return Kind.NAN
    return Kind.NEGATIVE if byte >= 0x80 else Kind.SATURATED if byte == 0x7E else None


def under(block: np.ndarray) -> Under:
    if (block == 0x77).all():
        return Under.SEVENS
    return Under.ZEROS if not (block & 0x77).any() else Under.OTHER


@pytest.mark.parametrize("sparse", [0, 256])
@pytest.mark.parametrize("rows_at_once", [3, 1 << 16])
@pytest.mark.parametrize("layout", ["nvfp4", "w4a8", "3d", "mxfp4"])
def test_classify(layout: str, rows_at_once: int, sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunk and however dense the hits: the same blocks in the same order."""
    monkeypatch.setattr(blocks, "_ROWS", rows_at_once)
    monkeypatch.setattr(blocks, "_SPARSE", sparse)
    e4m3 = layout != "mxfp4"
    unit = 8 if layout in ("nvfp4", "3d") else 16
    inner = 3 if layout == "3d" else 1

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 4)) * 2 * inner
        scale_bytes = st.sampled_from(E4M3_BYTES if e4m3 else E8M0_BYTES)
        scales = np.array(data.draw(st.lists(scale_bytes, min_size=count, max_size=count)), np.uint8)
        codes = np.zeros((count, unit), np.uint8)
        for block in codes:
            block[:] = data.draw(st.sampled_from(FP4))
            block[data.draw(st.integers(0, unit - 1))] = data.draw(st.sampled_from(FP4))
        stored = codes
        shape, scale_shape = [2, count // 2 * unit], [2, count // 2]
        if inner > 1:
            stored = codes.reshape(count // inner, inner, unit).swapaxes(1, 2)
            shape, scale_shape = [2, count // inner // 2 * unit, inner], [2, count // inner // 2, inner]
        report = _report(layout, stored, scales, tuple(shape), tuple(scale_shape))
        for kind in Kind:
            for below in Under:
                expected = [
                    i for i in range(count) if kind_of(int(scales[i]), e4m3) is kind and under(codes[i]) is below
                ]
                hits = report.hits(kind, below)
                assert (hits.count, hits.first) == (len(expected), tuple(expected[:8]))

    check()


def _report(
    layout: str, codes: np.ndarray, scales: np.ndarray, shape: tuple[int, ...], scale_shape: tuple[int, ...]
) -> blocks.BlockReport:
    names = {
        "nvfp4": ("m.weight", "m.weight_scale", "F8_E4M3"), "w4a8": ("m.weight", "m.weight_scale", "F8_E4M3"),
        "3d": ("m.x", "m.x_weight_scale", "F8_E4M3"), "mxfp4": ("m.weight", "m.weight_scale", "U8"),
    }[layout]  # fmt: skip
    content = codes.tobytes() + scales.tobytes()
    refs = [
        TensorRef(names[0], "U8", shape, "f", 0, codes.size),
        TensorRef(names[1], names[2], scale_shape, "f", codes.size, scales.size),
    ]
    if layout != "mxfp4":
        refs.append(TensorRef(f"{names[1]}_2", "F32", (), "f", 0, 4))
    (layer,) = recognise(refs).layers
    geometry = layer.geometry()
    assert geometry is not None

    def read(ref: TensorRef, at: int, length: int) -> bytes:
        assert 0 <= at <= at + length <= ref.nbytes
        return content[ref.start + at : ref.start + at + length]

    report = classify(read, layer, geometry, frozenset(Kind))
    for hits in report.found.values():
        assert len(hits.first) == min(hits.count, 8)
    return report
