"""Bit equality with the installed exporters on fresh random weights; skipped where they are not installed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("modelopt")
pytest.importorskip("compressed_tensors")
pytest.importorskip("torchao")
torch = pytest.importorskip("torch")

from quant import fp8, mx, mx_to_nv, nvfp4  # noqa: E402
from quant.floats import Word  # noqa: E402
from quant.rounding import Rule  # noqa: E402
from quant.scheme import (  # noqa: E402
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    MXFP4,
    MXFP8,
    NVFP4_BLOCK32,
    NVFP4_DIVIDE,
)
from tests.quant import exporters  # noqa: E402
from tests.quant.test_golden import same  # noqa: E402

pytestmark = pytest.mark.clients

DTYPES = {Word.FLOAT32: torch.float32, Word.BFLOAT16: torch.bfloat16, Word.FLOAT16: torch.float16}
KINDS = ["gauss", "student", "outlier"]


def fresh(kind: str, word: Word):  # type: ignore[no-untyped-def]
    """A new weight each run; its seed is printed when a test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (128, 256)) if kind == "student" else rng.standard_normal((128, 256))
    if kind == "outlier":
        x[3, 77] = 500
    w = torch.from_numpy((x * 0.02).astype(np.float32)).to(DTYPES[word])
    return w, exporters.raw(w)


def check(name, theirs, ours):  # type: ignore[no-untyped-def]
    same({f"{name}/{part}": x for part, x in theirs.items()}, name, ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", list(Word))
def test_modelopt(word, kind):
    w, n = fresh(kind, word)
    top = w.float().abs().max()
    check("dynamic", exporters.modelopt_dynamic(w), nvfp4.quantise(n))
    check("shared", exporters.modelopt_dynamic(w, top * 3), nvfp4.quantise(n, float(top * 3)))
    check("w4a8", exporters.modelopt_dynamic(w, size=32), nvfp4.quantise(n, scheme=NVFP4_BLOCK32))
    static = exporters.modelopt_static(w, exporters.block_amax(w), top)
    check("static", static, nvfp4.quantise(n, method=nvfp4.Method.STATIC))
    four = exporters.modelopt_four_over_six(w, top)
    check("4/6", four, nvfp4.quantise(n, method=nvfp4.Method.FOUR_OVER_SIX))
    check("mxfp4", exporters.modelopt_mxfp4(w), mx.quantise(n, MXFP4, mx.ScaleRule.CEIL, Rule.TIES_DOWN))
    check("mxfp8", exporters.modelopt_mxfp8(w), mx.quantise(n, MXFP8, mx.ScaleRule.CEIL))
    check("fp8", exporters.modelopt_fp8(w, "tensor"), fp8.quantise(n, FP8_TENSOR, word=word))
    check("fp8 channel", exporters.modelopt_fp8(w, "channel"), fp8.quantise(n, FP8_CHANNEL))
    check("fp8 block", exporters.modelopt_fp8(w, "block"), fp8.quantise(n, FP8_BLOCK))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", list(Word))
def test_modelopt_sweep(word, kind):
    """The exporter's calibrator on a CPU has its scales an ulp off, so a block may differ where its losses tie.

    Equal on all but 1 block in 500; where not, our choice must not lose more (in float64).
    """
    w, n = fresh(kind, word)
    theirs = exporters.modelopt_sweep(w, w.float().abs().max())
    ours = nvfp4.quantise(n, method=nvfp4.Method.SWEEP)
    other = theirs["scales"] != ours.scales
    assert other.mean() < 0.002
    wide = w.double().numpy()
    made = nvfp4.Quantised(nvfp4.NVFP4, theirs["packed"], theirs["scales"], theirs["global"].astype(np.float32))
    loss = [((wide - q.weights()) ** 2).reshape(*other.shape, 16).sum(-1)[other] for q in (made, ours)]
    assert (loss[1] <= loss[0] * (1 + 1e-5)).all()  # a tie to within the float32 of the loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", list(Word))
def test_compressed_tensors(word, kind):
    w, n = fresh(kind, word)
    check("nvfp4", exporters.ct_nvfp4_quantise(w), nvfp4.quantise(n, scheme=NVFP4_DIVIDE, word=word))
    if word is not Word.FLOAT16:
        nearest = mx.ScaleRule.NEAREST
        check("mxfp4", exporters.ct_mx(w, 4), mx.quantise(n, MXFP4, nearest, Rule.NEGATIVE))
        check("mxfp8", exporters.ct_mx(w, 8), mx.quantise(n, MXFP8, nearest))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [mx.ScaleRule.FLOOR, mx.ScaleRule.CEIL, mx.ScaleRule.EVEN])
def test_torchao(kind, rule):
    for word in (Word.FLOAT32, Word.BFLOAT16):
        w, n = fresh(kind, word)
        mode = "rceil" if rule is mx.ScaleRule.CEIL else rule.value
        for bits, scheme in ((4, MXFP4), (8, MXFP8)):
            check("mx", exporters.torchao_mx(w, bits, mode), mx.quantise(n, scheme, rule))


def test_modelopt_cast():
    rng = np.random.default_rng(np.random.SeedSequence())
    packed = rng.integers(0, 256, (32, 256), np.uint8)
    scales = rng.integers(105, 122, (32, 16)).astype(np.uint8)
    theirs = exporters.modelopt_cast(torch.from_numpy(packed), torch.from_numpy(scales))
    ours = mx_to_nv.cast(mx_to_nv.Source(packed, scales)).quantised
    np.testing.assert_array_equal(theirs["scales"], ours.scales)
    assert theirs["global"].astype(np.float32) == ours.global_scale
    same_value = (theirs["packed"] == packed) | (((theirs["packed"] ^ packed) & 0x77) == 0)
    assert same_value.all()  # the exporter loses the sign of -0, ours copies the codes
    np.testing.assert_array_equal(ours.stored, packed)


def test_where_the_exporters_are_wrong_ours_is_not():
    zero = torch.zeros(4, 64)
    broken = exporters.modelopt_dynamic(zero)
    assert broken["global"] == 0
    assert (broken["scales"] & 0x7F == 0x7F).all()
    assert (broken["packed"] == 0x77).all()
    ours = nvfp4.quantise(exporters.raw(zero))
    assert (ours.weights() == 0).all()
    assert np.isfinite(ours.steps()).all()
    assert (exporters.modelopt_fp8(zero, "tensor")["codes"] & 0x7F == 0x7F).all()
    assert (fp8.quantise(exporters.raw(zero)).weights() == 0).all()
