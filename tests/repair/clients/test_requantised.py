"""Requantised checkpoints read by the programs that serve them: their logits are those of our own dequantised weights.

compressed-tensors decompresses into bfloat16, so ours are rounded to it, too.  modelopt's weights are equal but for
float32's last bits: it multiplies both scales before the code, and so rounds once more than we do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("compressed_tensors")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from repair.make.layouts import Layout  # noqa: E402
from repair.make.recipe import Inputs, KvCache, Method, Recipe  # noqa: E402
from tests.repair.clients.serving import LLAMA, by_compressed_tensors, by_transformers, distance, logits  # noqa: E402
from tests.repair.make.requantising import dequantised, requantise, tensors  # noqa: E402

pytestmark = pytest.mark.clients
LAST_BITS = 1e-6
CT = Layout.COMPRESSED_TENSORS


def plain(root: Path, made: Path) -> np.ndarray:
    """A plain model of the source's kind with our weights of each module of ``made``."""
    from safetensors.torch import load_file, save_file

    stored = tensors(made)
    state = {name: x.float() for path in root.glob("*.safetensors") for name, x in load_file(path).items()}
    for name in stored:
        if name.endswith(".weight_scale"):
            module = name.removesuffix(".weight_scale")
            state[f"{module}.weight"] = torch.from_numpy(rounded(stored, module))
    folder = made.with_name(f"{made.name} plain")
    folder.mkdir()
    (folder / "config.json").write_text((root / "config.json").read_text())
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return logits(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def rounded(stored: dict[str, Any], module: str) -> np.ndarray:
    """Ours in bfloat16."""
    exact = torch.from_numpy(dequantised(stored, module).astype(np.float32))
    return np.asarray(exact.to(torch.bfloat16).float().numpy())


def by_modelopt(stored: dict[str, Any], module: str) -> np.ndarray:
    """modelopt's own dequantisation of one layer."""
    NVFP4QTensor = pytest.importorskip("modelopt.torch.quantization.qtensor.nvfp4_tensor").NVFP4QTensor

    codes, scale = (torch.from_numpy(stored[f"{module}.{leaf}"].array().copy()) for leaf in ("weight", "weight_scale"))
    wide = torch.tensor(float(stored[f"{module}.weight_scale_2"].values()))
    made = NVFP4QTensor(torch.Size((codes.shape[0], 2 * codes.shape[1])), torch.float32, codes)
    found = made.dequantize(
        torch.float32, scale=scale.view(torch.float8_e4m3fn), double_scale=wide, block_sizes={-1: 16}
    )
    return np.asarray(found.numpy())


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-MoE as transformers saves it."""
    torch.manual_seed(3)
    config = transformers.Qwen3MoeConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, moe_intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[], decoder_sparse_step=1, tie_word_embeddings=False,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("qwen")
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(root)
    return root


@pytest.fixture(params=["llama", "qwen"])
def root(request: pytest.FixtureRequest) -> Path:
    return LLAMA if request.param == "llama" else request.getfixturevalue("qwen")


@pytest.mark.parametrize("method", list(Method))
def test_compressed_tensors_reads_what_we_wrote(root: Path, method: Method, tmp_path: Path):
    """transformers and compressed-tensors, decompressing; the experts by compressed-tensors alone (see serving)."""
    requantise(root, tmp_path / "new", Recipe("t", method=method, layout=CT))
    ours = plain(root, tmp_path / "new")
    assert distance(by_compressed_tensors(tmp_path / "new"), ours) < LAST_BITS
    if root == LLAMA:
        assert distance(by_transformers(tmp_path / "new", dequantise=True), ours) < LAST_BITS
    source = logits(transformers.AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32))
    assert 0.001 < distance(ours, source) < 0.3


@pytest.mark.parametrize("method", list(Method))
def test_modelopt_reads_what_we_wrote(root: Path, method: Method, tmp_path: Path):
    requantise(root, tmp_path / "new", Recipe("t", method=method))
    stored = tensors(tmp_path / "new")
    modules = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    assert len(modules) >= 14
    for module in modules:
        np.testing.assert_allclose(by_modelopt(stored, module), dequantised(stored, module), rtol=LAST_BITS)


def test_input_scales_and_a_kv_cache_load(qwen: Path, tmp_path: Path):
    """The whole declaration, as its own loader validates it: static input scales, FP8 cache, every expert."""
    from compressed_tensors.quantization import QuantizationConfig

    recipe = Recipe("t", layout=CT, activations=Inputs.ONE, kv_cache=KvCache.FP8_CAST)
    requantise(qwen, tmp_path / "new", recipe)
    found = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(found)
    group = parsed.config_groups["group_0"]
    assert (group.weights.num_bits, group.input_activations.dynamic) == (4, "local")
    assert parsed.kv_cache_scheme.num_bits == 8
    stored = tensors(tmp_path / "new")
    assert sum(name.endswith("input_global_scale") for name in stored) == 2 * (4 + 4 * 3)
