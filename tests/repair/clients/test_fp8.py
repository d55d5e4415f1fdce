"""FP8 per tensor and per block, damaged, repaired, and read by transformers each time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("compressed_tensors")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from auditor.finding import Safety  # noqa: E402
from tests.repair.clients.exporting import block_fp8, ct_fp8, ct_fp8_block, exported  # noqa: E402
from tests.repair.clients.serving import (  # noqa: E402
    LLAMA,
    by_fine_grained,
    by_transformers,
    distance,
    layers,
    logits,
    poke,
    repair,
)

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def unquantised() -> np.ndarray:
    return logits(transformers.AutoModelForCausalLM.from_pretrained(LLAMA, dtype=torch.float32))


def served(root: Path, how) -> np.ndarray:
    """As transformers loads compressed-tensors, or as it dequantises DeepSeek's blocks."""
    return by_fine_grained(root) if how is block_fp8 else by_transformers(root, dequantise=True)


@pytest.fixture(scope="module", params=[ct_fp8, ct_fp8_block, block_fp8], ids=lambda how: how.__name__)
def export(request, tmp_path_factory):
    root = exported(LLAMA, tmp_path_factory.mktemp("fp8") / "export", request.param)
    return root, request.param, served(root, request.param)


def mended(root: Path, to: Path, source: Path | None) -> Path:
    shutil.copytree(root, to)
    assert repair(to, source, Safety.GUESS)
    return to


def test_the_sound_export_is_read_as_it_should_be(export, unquantised):
    assert distance(export[2], unquantised) < 0.06


def test_nan_weights(tmp_path, export, unquantised, record_property):
    """Every ninth weight of the down projections is NaN: finite without the source, the sound export's with it."""
    root, how, reference = export
    hurt = tmp_path / "hurt"
    shutil.copytree(root, hurt)
    for name, layer in layers(hurt).items():
        if name.endswith("down_proj"):
            poke(hurt, [(layer.codes.start + at, b"\x7f") for at in range(4, layer.codes.nbytes, 9)])
    assert np.isnan(served(hurt, how)).any()
    guessed = served(mended(hurt, tmp_path / "guessed", None), how)
    assert np.isfinite(guessed).all()
    restored = mended(hurt, tmp_path / "restored", LLAMA)
    np.testing.assert_array_equal(served(restored, how), reference)
    assert (restored / "model.safetensors").read_bytes() == (root / "model.safetensors").read_bytes()
    figures = [distance(x, unquantised) for x in (guessed, reference)]
    record_property("distance from the source", "guess {:.4f}, source {:.4f}".format(*figures))
    print(f"\nNaN weights, {how.__name__}: " + "guess {:.4f}, source {:.4f}".format(*figures))
    assert figures[1] < 0.5 * figures[0]


def test_zero_scales(tmp_path, export, unquantised, record_property):
    """Silent: value and output projections vanish under scales of 0.  The source alone can give them back."""
    root, how, reference = export
    hurt = tmp_path / "hurt"
    shutil.copytree(root, hurt)
    for name, layer in layers(hurt).items():
        if name.endswith(("v_proj", "o_proj")):
            poke(hurt, [(layer.scales.start, bytes(layer.scales.nbytes))])
    before = served(hurt, how)
    restored = mended(hurt, tmp_path / "restored", LLAMA)
    after = served(restored, how)
    np.testing.assert_array_equal(after, reference)
    assert (restored / "model.safetensors").read_bytes() == (root / "model.safetensors").read_bytes()
    figures = [distance(x, unquantised) if np.isfinite(x).all() else np.inf for x in (before, after)]
    record_property("distance from the source, before -> after", "{:.4f} -> {:.4f}".format(*figures))
    print(f"\nzero scales, {how.__name__}: " + "{:.4f} -> {:.4f}".format(*figures))
    assert figures[1] < 0.2 * figures[0]
