"""Bit equality with vectors that the real exporters made (``tests/data/golden/make_golden.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant import fp8, mx, mx_to_nv, nvfp4
from quant.backend import Backend
from quant.cast import encode
from quant.codes import E2M1, E4M3, E5M2, E8M0
from quant.floats import Word
from quant.quantised import Quantised
from quant.rounding import Rule
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, MXFP4, MXFP8, NVFP4_BLOCK32, NVFP4_DIVIDE
from tests.quant import legacy

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WORDS = [Word.FLOAT32, Word.BFLOAT16, Word.FLOAT16]
BACKENDS = list(Backend)
TOP = legacy.Generation.TOP


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, np.ndarray]]:
    return {path.stem: dict(np.load(path)) for path in sorted(GOLDEN.glob("*.npz"))}


def same(theirs: dict[str, np.ndarray], prefix: str, ours: Quantised) -> None:
    made = {key.removeprefix(prefix + "/"): x for key, x in theirs.items() if key.startswith(prefix + "/")}
    assert made, prefix
    stored = made["packed"] if "packed" in made else made["codes"]
    np.testing.assert_array_equal(stored, ours.stored)
    np.testing.assert_array_equal(made["scales"].reshape(-1), np.asarray(ours.scales).reshape(-1))
    if "global" in made:
        assert ours.global_scale is not None
        assert made["global"].astype(np.float32).tobytes() == ours.global_scale.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", WORDS)
def test_modelopt(golden, word, backend):
    w, theirs = golden["inputs"][f"weight/{word}"], golden["modelopt"]
    top = float(nvfp4.shared_amax([w]))
    same(theirs, f"{word}/dynamic", nvfp4.quantise(w, backend=backend))
    shared = float(np.float32(top) * np.float32(1.7))
    same(theirs, f"{word}/shared", nvfp4.quantise(w, shared, backend=backend))
    same(theirs, f"{word}/block32", nvfp4.quantise(w, scheme=NVFP4_BLOCK32, backend=backend))
    for method in (nvfp4.Method.STATIC, nvfp4.Method.SWEEP, nvfp4.Method.FOUR_OVER_SIX):
        same(theirs, f"{word}/{method.replace('-', '_')}", nvfp4.quantise(w, method=method, backend=backend))
    ceil = mx.ScaleRule.CEIL
    same(theirs, f"{word}/mxfp4", mx.quantise(w, MXFP4, ceil, Rule.TIES_DOWN, backend))
    same(theirs, f"{word}/mxfp8", mx.quantise(w, MXFP8, ceil, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_four_over_six_between_two_scales(golden, backend):
    """Where an ulp of the calibrator's divisor decides which E4M3 scale a choice is judged by."""
    ours = nvfp4.quantise(golden["inputs"]["middles"], method=nvfp4.Method.FOUR_OVER_SIX, backend=backend)
    same(golden["modelopt"], "middles/four_over_six", ours)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", WORDS)
def test_modelopt_fp8(golden, word, backend):
    w, theirs = golden["inputs"][f"weight/{word}"], golden["modelopt"]
    same(theirs, f"{word}/fp8_tensor", fp8.quantise(w, FP8_TENSOR, word=word, backend=backend))
    same(theirs, f"{word}/fp8_channel", fp8.quantise(w[:16], FP8_CHANNEL, backend=backend))
    tall = np.tile(w, (4, 1))[:128]
    same(theirs, f"{word}/fp8_block", fp8.quantise(tall, FP8_BLOCK, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", WORDS)
def test_ties(golden, word, backend):
    w = golden["inputs"][f"lattice/{word}"]
    same(golden["modelopt"], f"{word}/lattice", nvfp4.quantise(w, backend=backend))
    ties_down = mx.quantise(w, MXFP4, mx.ScaleRule.CEIL, Rule.TIES_DOWN, backend)
    same(golden["modelopt"], f"{word}/lattice_mxfp4", ties_down)
    divide = nvfp4.quantise(w, scheme=NVFP4_DIVIDE, word=word, backend=backend)
    same(golden["compressed_tensors"], f"{word}/lattice", divide)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", WORDS)
def test_compressed_tensors(golden, word, backend):
    w, theirs = golden["inputs"][f"weight/{word}"], golden["compressed_tensors"]
    same(theirs, f"{word}/nvfp4", nvfp4.quantise(w, scheme=NVFP4_DIVIDE, word=word, backend=backend))
    if word is not Word.FLOAT16:
        nearest = mx.ScaleRule.NEAREST
        same(theirs, f"{word}/mxfp4", mx.quantise(w, MXFP4, nearest, Rule.NEGATIVE, backend))
        same(theirs, f"{word}/mxfp8", mx.quantise(w, MXFP8, nearest, backend=backend))


@pytest.mark.parametrize("rule", [mx.ScaleRule.FLOOR, mx.ScaleRule.CEIL, mx.ScaleRule.EVEN])
@pytest.mark.parametrize("source", ["weight", "lattice"])
@pytest.mark.parametrize("word", WORDS[:2])
def test_torchao(golden, word, source, rule):
    w = golden["inputs"][f"{source}/{word}"]
    mode = "rceil" if rule is mx.ScaleRule.CEIL else rule.value
    for bits, scheme in ((4, MXFP4), (8, MXFP8)):
        same(golden["torchao"], f"{word}/{source}/{bits}/{mode}", mx.quantise(w, scheme, rule))


@pytest.mark.parametrize("fmt", [E2M1, E4M3, E5M2, E8M0], ids=lambda fmt: fmt.name)
def test_every_code_as_ml_dtypes_has_it(golden, fmt):
    np.testing.assert_array_equal(golden["ml_dtypes"][f"{fmt.name}/values"], fmt.values)
    if fmt is E8M0:
        return
    x, codes = golden["ml_dtypes"][f"{fmt.name}/x"], golden["ml_dtypes"][f"{fmt.name}/codes"]
    np.testing.assert_array_equal(encode(fmt, x).codes, codes)


@pytest.mark.parametrize("spread", [5, 17, 19, 25])
def test_cast_agrees_where_it_is_exact_and_is_never_worse(golden, spread):
    packed, scales = (golden["inputs"][f"cast/{spread}/{part}"] for part in ("packed", "scales"))
    theirs = {part: golden["modelopt"][f"cast/{spread}/{part}"] for part in ("packed", "scales", "global")}
    ours = mx_to_nv.cast(mx_to_nv.Source(packed, scales))
    source = MXFP4.dequantise(Quantised(MXFP4, packed, scales).codes, scales).astype(np.float64)
    top = theirs["global"].astype(np.float32)
    exported = Quantised(nvfp4.NVFP4, theirs["packed"], theirs["scales"], top).weights()
    loss = ((source - exported) ** 2).reshape(-1, 16).sum(1)
    assert (ours.error.reshape(-1) <= loss).all()
    window = np.repeat(scales.astype(int) >= scales.max() - 17, 2, axis=-1)
    assert (ours.error.reshape(window.shape)[window] == 0).all()
    if spread <= 17:
        live = np.repeat(scales > 0, 2, axis=-1)
        np.testing.assert_array_equal(ours.quantised.scales[live], theirs["scales"][live])
        np.testing.assert_array_equal(ours.quantised.global_scale, top)
        np.testing.assert_array_equal(ours.quantised.stored, packed)  # verbatim, the sign of zeros too
    else:
        assert ours.error.sum() > 0  # nothing is exact out there, for either side


def test_modelopt_0440_underflow_is_reproduced_by_legacy_only():
    """Rows of a weight exported by modelopt 0.44.0 with blocks far below the rest: scale byte 0 over codes ±7."""
    made = np.load(GOLDEN / "modelopt_0440.npz")
    assert (made["scales"] == 0).sum() == 3
    same({f"x/{k}": v for k, v in made.items()}, "x", legacy.quantise(made["weight"], TOP, global_amax=made["amax"]))
    ours = nvfp4.quantise(made["weight"], made["amax"])
    assert (ours.scales[made["scales"] == 0] == 1).all()  # 2^-9, never 0
