"""Sums of squared codes by scale byte, against blocks unpacked one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auditor.engine import examine
from auditor.layer import QuantizedLayer
from quant.codes import E2M1, E4M3
from repair.effect import Energy, Read, Tally, counts, steps
from tests.forge import make
from tests.layouts import LAYOUTS

PACKED = [x for x in LAYOUTS if any(layer.kind == "nvfp4" for layer in make(x).layers)]


def energy(
    layer: QuantizedLayer, read: Read, rows: tuple[int, int] | None = None, stored: Path | None = None
) -> Energy | None:
    tally = Tally()
    wait = tally.begin(layer, read, rows, stored)
    tally.close()
    return wait() if wait else None


@pytest.mark.parametrize("layout", PACKED)
def test_energy_is_exact(layout: str, tmp_path: Path) -> None:
    model = make(layout)
    ctx, _ = examine(model.write(tmp_path))
    for layer in ctx.layers:
        made = next((m for m in model.layers if m.codes == layer.codes.name and m.kind == "nvfp4"), None)
        if made is None:
            continue
        known = energy(layer, ctx.read)
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
        there = energy(layer, ctx.read, stored=ctx.checkpoint.shards[layer.codes.shard].path)
        assert there is not None
        assert np.array_equal(there.squares, squares)
        geometry = layer.geometry()
        assert geometry is not None
        if geometry.rows > 1:
            halves = [(0, geometry.rows // 2), (geometry.rows // 2, geometry.rows)]
            parts = [energy(layer, ctx.read, rows) for rows in halves]
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
    assert tally.begin(layer, ctx.read) is not None
    assert tally.begin(layer, ctx.read) is None
    tally.close()
    ctx.close()
