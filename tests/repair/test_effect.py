"""Sums of squared codes by scale byte, against blocks unpacked one by one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.engine import examine
from auditor.formats.base import Role, all_formats
from auditor.layer import Geometry, QuantizedLayer
from auditor.tensorref import TensorRef
from quant import nvfp4
from quant.cast import pack_nibbles
from quant.codes import E2M1, E4M3
from repair.effect import RUNS, SAMPLE, Tally, counts, sample, steps
from repair.fixes.harmonise import rescaled
from tests.forge import make
from tests.layouts import LAYOUTS

Weights = np.ndarray[tuple[int, int], np.dtype[np.floating]]
PACKED = [x for x in LAYOUTS if any(layer.kind == "nvfp4" for layer in make(x).layers)]


@pytest.mark.parametrize("layout", PACKED)
def test_energy_is_exact(layout: str, tmp_path: Path) -> None:
    model = make(layout)
    ctx, _ = examine(model.write(tmp_path))
    for layer in ctx.layers:
        made = next((m for m in model.layers if m.codes == layer.codes.name and m.kind == "nvfp4"), None)
        if made is None:
            continue
        known = Tally().energy(layer, ctx.read)
        assert known is not None
        scales = np.frombuffer(model.tensors[made.scales].data, np.uint8)
        codes = model.tensors[made.codes].data
        blocks, squares = np.zeros(256), np.zeros(256)
        for flat, byte in enumerate(scales):
            packed = [codes[at] for at in made.block_bytes(flat, model.tensors[made.scales].shape)]
            blocks[byte] += 1
            squares[byte] += sum(float(E2M1.values[b & 15]) ** 2 + float(E2M1.values[b >> 4]) ** 2 for b in packed)
        assert np.array_equal(known.squares, squares)
        assert np.array_equal(counts(layer, ctx.read), blocks)
        assert known.taken == known.blocks == scales.size
        geometry = layer.geometry()
        assert geometry is not None
        if geometry.rows > 1:
            halves = [(0, geometry.rows // 2), (geometry.rows // 2, geometry.rows)]
            parts = [Tally().energy(layer, ctx.read, rows) for rows in halves]
            assert np.array_equal(sum(p.squares for p in parts if p), squares)
            assert np.array_equal(sum(counts(layer, ctx.read, rows) for rows in halves), blocks)
    ctx.close()


def test_steps_are_what_a_code_is_worth() -> None:
    assert steps(0.5, divides=False)[0x38] == 0.5
    assert steps(0.5, divides=True)[0x38] == 2.0
    assert steps(1.0, divides=False)[0x7F] == 0.0
    assert steps(2.0, divides=False)[0x7E] == 2.0 * E4M3.max


def test_only_so_many_codes_are_read(tmp_path: Path) -> None:
    ctx, _ = examine(make(PACKED[0]).write(tmp_path))
    layer = ctx.layers[0]
    tally = Tally(most=layer.codes.nbytes)
    assert tally.energy(layer, ctx.read) is not None
    assert tally.energy(layer, ctx.read) is None
    ctx.close()


@given(
    rows=st.integers(0, 5000), inner=st.integers(0, 40), start=st.integers(0, 100), most=st.integers(RUNS, 4 * SAMPLE)
)
def test_a_sample_is_of_distinct_rows_from_first_to_last(rows: int, inner: int, start: int, most: int) -> None:
    runs = list(sample(Geometry(start + rows, inner, 8), start, start + rows, most))
    taken = [row for first, count in runs for row in range(first, first + count)]
    assert taken == sorted(set(taken))
    assert len(taken) * inner <= max(most, RUNS * inner)
    if len(taken) < rows:
        assert (taken[0], taken[-1], len(runs)) == (start, start + rows - 1, RUNS)
    else:
        assert taken == list(range(start, start + rows))


def gaussian(rng: np.random.Generator, rows: int, columns: int) -> Weights:
    return rng.normal(size=(rows, columns))


def uneven(rng: np.random.Generator, rows: int, columns: int) -> Weights:
    return rng.normal(size=(rows, columns)) * rng.lognormal(0, 1, (rows, 1))


def few_strong(rng: np.random.Generator, rows: int, columns: int) -> Weights:
    weights = rng.normal(size=(rows, columns))
    weights[rng.choice(rows, 20, replace=False)] *= 30
    return weights


def strong_columns(rng: np.random.Generator, rows: int, columns: int) -> Weights:
    weights = rng.normal(size=(rows, columns))
    weights[:, :64] *= 30
    return weights


def heavy_tails(rng: np.random.Generator, rows: int, columns: int) -> Weights:
    return rng.standard_t(3, (rows, columns))


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("draw", [gaussian, uneven, few_strong, strong_columns, heavy_tails])
def test_a_sample_tells_the_error_of_all(draw: Callable[..., Weights], axis: int) -> None:
    """Against all blocks, of weights as exporters quantise them, re-rounded by several ratios."""
    within = 0.01 if draw is gaussian else 0.04
    weights = draw(np.random.default_rng(7), 1024, 2048).astype(np.float32)
    made = nvfp4.quantise(weights)
    scales, codes = made.scales, made.stored
    if axis == -2:  # [K, N]: the same numbers, blocks along the other axis
        nibbles = made.codes
        scales, codes = np.ascontiguousarray(scales.T), pack_nibbles(np.ascontiguousarray(nibbles.T), axis=0)
    held = {"scales": scales.tobytes(), "codes": codes.tobytes()}
    parts = {
        Role.CODES: TensorRef("codes", "U8", codes.shape, "", 0, codes.size),
        Role.SCALES: TensorRef("scales", "F8_E4M3", scales.shape, "", 0, scales.size),
    }
    layout = next(f for f in all_formats() if f.axis == axis and f.scale is E4M3 and f.is_fp4())
    layer = QuantizedLayer("x", "x", layout, parts)
    few, every = (
        Tally(sample=blocks).energy(layer, lambda ref, at, length: held[ref.name][at : at + length])
        for blocks in (SAMPLE, scales.size)
    )
    assert few is not None
    assert every is not None
    assert few.taken <= SAMPLE < every.taken == every.blocks == few.blocks == scales.size
    for ratio in (Fraction(95, 100), Fraction(7, 10), Fraction(3, 10), Fraction(1, 100)):
        old, new = steps(1.0, divides=False), steps(float(1 / ratio), divides=False)
        after = new[rescaled(ratio)]
        assert few.error(old, after) == pytest.approx(every.error(old, after), rel=within)
        assert few.error(old, new) == pytest.approx(every.error(old, new), rel=1e-9)


def test_zeros_where_the_sample_lies_are_no_error_of_zero() -> None:
    rows, unit = 1 << 16, 8
    codes = np.full((rows, unit), 0x22, np.uint8)
    for first, count in sample(Geometry(rows, 1, unit), 0, rows, SAMPLE):
        codes[first : first + count] = 0
    held = {"codes": codes.tobytes(), "scales": bytes([0x70]) * rows}
    parts = {
        Role.CODES: TensorRef("codes", "U8", (256, rows * unit // 256), "", 0, codes.size),
        Role.SCALES: TensorRef("scales", "F8_E4M3", (256, rows // 256), "", 0, rows),
    }
    layout = next(f for f in all_formats() if f.name == "modelopt-nvfp4")
    layer = QuantizedLayer("x", "x", layout, parts)
    assert Tally().energy(layer, lambda ref, at, length: held[ref.name][at : at + length]) is None
