"""What lies under zero scales of FP8 layers, against dequantisation by blocks."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.audit import Depth
from auditor.engine import examine
from auditor.under import live_zeros
from tests.forge import Model
from tests.raw import Raw, raw

CASES = {
    "tensor": ((6, 8), (), (6, 8)),
    "one": ((6, 8), (1,), (6, 8)),
    "channel": ((6, 8), (6, 1), (1, 8)),
    "flat": ((6, 8), (6,), (1, 8)),
    "block": ((160, 150), (2, 2), (128, 128)),
    "rank 4": ((160, 150), (2, 1, 2, 1), (128, 128)),
}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("case", CASES)
def test_live_zeros(case: str, dtype: str) -> None:
    codes, scales, block = CASES[case]
    grid = (-(-codes[0] // block[0]), -(-codes[1] // block[1]))

    @settings(max_examples=20, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        zero = np.array(data.draw(st.lists(st.booleans(), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1])))
        live = [
            (data.draw(st.integers(0, codes[0] - 1)), data.draw(st.integers(0, codes[1] - 1)))
            for _ in range(data.draw(st.integers(0, 3)))
        ]
        stored = np.full(codes, data.draw(st.sampled_from((0x00, 0x80))), np.uint8)
        for at in live:
            stored[at] = data.draw(st.sampled_from((0x01, 0x7F, 0xFF, 0x81)))
        model = Model("x", {}, {}, None, ())
        model.tensors["m.weight"] = Raw("F8_E4M3", codes, stored.tobytes())
        model.tensors["m.weight_scale"] = raw(dtype, np.where(zero, 0.0, 0.5).reshape(scales), scales)
        expected = sorted({r // block[0] * grid[1] + c // block[1] for r, c in live} & set(np.flatnonzero(zero)))
        with TemporaryDirectory() as root:
            ctx, _ = examine(model.write(Path(root)), depth=Depth.HEADERS, rules=[])
            hits = live_zeros(ctx.layers[0], ctx)
            ctx.close()
        assert (hits.count, hits.first) == (len(expected), tuple(expected[:8]))

    check()
