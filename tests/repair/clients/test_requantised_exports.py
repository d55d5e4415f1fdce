"""modelopt exports tiny models of three families here and now; requantising their sources gives the same bytes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

mtq = pytest.importorskip("modelopt.torch.quantization")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from repair.make.recipe import PRESETS, Recipe  # noqa: E402
from tests.repair.make.requantising import declared, requantise, tensors  # noqa: E402

pytestmark = pytest.mark.clients
COMMON = {
    "vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


def gptoss() -> Any:
    """Fused experts, inputs first, gate and up alternating, with biases."""
    config = transformers.GptOssConfig(
        **COMMON, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


def llama4() -> Any:
    """Fused experts, inputs first, gate before up, and a shared expert."""
    config = transformers.Llama4TextConfig(
        **COMMON, intermediate_size=64, intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=1,
        interleave_moe_layer_step=1,
    )  # fmt: skip
    return transformers.Llama4ForCausalLM(config)


def deepseek() -> Any:
    """Latent attention, a dense layer, experts of their own."""
    config = transformers.DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": 4, "head_dim": 16}, intermediate_size=96, moe_intermediate_size=64,
        n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2, q_lora_rank=32, kv_lora_rank=32,
        qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32, first_k_dense_replace=1,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


EXPORTS = [
    (gptoss, "NVFP4_DEFAULT_CFG", "linears"), (llama4, "NVFP4_DEFAULT_CFG", "linears"),
    (deepseek, "NVFP4_DEFAULT_CFG", "linears"), (gptoss, "NVFP4_EXPERTS_ONLY_CFG", "experts"),
    (llama4, "NVFP4_MLP_ONLY_CFG", "mlp"), (deepseek, "NVFP4_MLP_ONLY_CFG", "mlp"),
    (deepseek, "W4A16_NVFP4_CFG", "linears"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "settings", "preset"), EXPORTS, ids=[f"{m.__name__}-{s}" for m, s, _ in EXPORTS])
def test_bit_for_bit(make: Any, settings: str, preset: str, tmp_path: Path):
    """Every tensor but the input scales, and the exclusions."""
    from modelopt.torch.export import export_hf_checkpoint

    torch.manual_seed(0)
    model = make().to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn_like(parameter.float()).mul(0.05).to(torch.bfloat16))
    model.save_pretrained(tmp_path / "src")
    tokens = torch.arange(256).reshape(2, 128) % 250
    mtq.quantize(model, copy.deepcopy(getattr(mtq, settings)), lambda quantised: quantised(tokens))
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=str(tmp_path / "theirs"))
    requantise(tmp_path / "src", tmp_path / "ours", Recipe("t", modules=PRESETS[preset]))
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    theirs = {name: one for name, one in theirs.items() if not name.endswith("input_scale")}
    assert sorted(ours) == sorted(theirs)
    assert not [name for name, one in theirs.items() if ours[name] != one]
    assert sorted(declared(tmp_path / "ours")["ignore"]) == sorted(declared(tmp_path / "theirs")["ignore"])
