"""A mixture of experts in compressed-tensors' NVFP4, damaged, repaired, and read by transformers each time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("compressed_tensors")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from auditor.finding import Safety  # noqa: E402
from tests.repair.clients.exporting import ct_nvfp4, exported  # noqa: E402
from tests.repair.clients.serving import (  # noqa: E402
    by_compressed_tensors,
    by_transformers,
    distance,
    layers,
    logits,
    lose,
    poke,
    repair,
)

pytestmark = pytest.mark.clients
EXPERTS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Qwen3-MoE with random weights; the up projections have outliers, so that gate and up differ in range."""
    config = transformers.AutoConfig.for_model(
        "qwen3_moe", vocab_size=256, hidden_size=128, intermediate_size=128, moe_intermediate_size=64, head_dim=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=2,
        max_position_embeddings=128, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.08)
        if name.endswith("gate_up_proj"):
            weight.data[:, 64::16, ::32] *= 6  # rows of up
    root = tmp_path_factory.mktemp("qwen") / "source"
    model.save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def unquantised(source) -> np.ndarray:
    return logits(transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))


@pytest.fixture(scope="module")
def sound(source, tmp_path_factory) -> Path:
    return exported(source, tmp_path_factory.mktemp("sound") / "export", ct_nvfp4)


def mended(root: Path, to: Path, source: Path | None, risk: Safety = Safety.GUESS) -> Path:
    shutil.copytree(root, to)
    assert repair(to, source, risk)
    return to


READERS = {
    "compressed-tensors": by_compressed_tensors,
    "transformers": lambda root: by_transformers(root, dequantise=True),
}


@pytest.mark.parametrize("reader", READERS)
def test_lost_blocks_of_experts(tmp_path, source, sound, unquantised, reader, record_property):
    """NaN scales over lost codes in every expert: NaN, then finite without the source, then the sound export's own."""
    read = READERS[reader]
    reference = read(sound)
    hurt = tmp_path / "hurt"
    shutil.copytree(sound, hurt)
    for name, layer in layers(hurt).items():
        if ".experts." in name:
            poke(hurt, lose(layer, list(range(1, layer.scales.size, 5)), 0x7F))
    assert np.isnan(read(hurt)).any()
    guessed = read(mended(hurt, tmp_path / "guessed", None))
    assert np.isfinite(guessed).all()
    restored = mended(hurt, tmp_path / "restored", source)
    np.testing.assert_array_equal(read(restored), reference)
    assert (restored / "model.safetensors").read_bytes() == (sound / "model.safetensors").read_bytes()
    if reader != "compressed-tensors":  # it leaves the experts' global scales out: far off, sound or not
        return
    figures = [distance(x, unquantised) for x in (guessed, reference)]
    record_property("distance from the source", "guess {:.4f}, source {:.4f}".format(*figures))
    print("\nlost blocks of experts: guess {:.4f}, source {:.4f}".format(*figures))
    assert figures[1] < 0.8 * figures[0]


def as_served(root: Path, to: Path) -> np.ndarray:
    """Logits where gate's global scale serves the up projection too, as vLLM's fused experts have it."""
    shutil.copytree(root, to)
    of, raw = layers(to), (to / "model.safetensors").read_bytes()
    for name, layer in of.items():
        if ".experts." in name and name.endswith("up_proj"):
            gate = of[name.replace("up_proj", "gate_proj")].global_scale
            assert gate is not None
            assert layer.global_scale is not None
            poke(to, [(layer.global_scale.start, raw[gate.start : gate.start + 4])])
    return by_compressed_tensors(to)


def test_gate_and_up_with_scales_of_their_own(tmp_path, source, sound, unquantised, record_property):
    """Silent: each projection is right by its own scale, and a server takes one scale for both."""
    hurt = exported(source, tmp_path / "hurt", ct_nvfp4, apart={"gate_proj"})
    assert distance(by_compressed_tensors(hurt), unquantised) < 0.4  # nothing to see for this reader
    before = as_served(hurt, tmp_path / "served before")
    assert np.isfinite(before).all()
    bounded = as_served(mended(hurt, tmp_path / "bounded", None, Safety.BOUNDED), tmp_path / "served bounded")
    restored = mended(hurt, tmp_path / "restored", source)
    after = as_served(restored, tmp_path / "served after")
    np.testing.assert_array_equal(after, by_compressed_tensors(sound))
    assert (restored / "model.safetensors").read_bytes() == (sound / "model.safetensors").read_bytes()
    figures = [distance(x, unquantised) for x in (before, bounded, after)]
    record_property("distance from the source", "{:.4f}, without source {:.4f}, with it {:.4f}".format(*figures))
    print("\ngate and up apart: {:.4f}, without source {:.4f}, with it {:.4f}".format(*figures))
    assert max(figures[1:]) < 0.65 * figures[0]
