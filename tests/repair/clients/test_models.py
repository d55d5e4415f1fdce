"""Model families, built small by transformers: names of the hub, names of transformers 5, and modelopt's exports.

A family's weights are saved twice: as the hub names them and as transformers 5 holds them.  Whichever of the two an
export follows, every layer must find the very rows of the other.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from safetensors.torch import load_file  # noqa: E402

from auditor.checkpoint import Checkpoint  # noqa: E402
from auditor.layer import recognise  # noqa: E402
from quant.floats import widen  # noqa: E402
from repair.source import Source  # noqa: E402
from repair.source_codes import grid  # noqa: E402
from tests.repair.restoring import assert_equal, pair  # noqa: E402
from tests.repair.test_names import nvfp4, nvfp4_3d  # noqa: E402

pytestmark = pytest.mark.clients

EXPERTS = 4
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": None,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}  # fmt: skip
OWN = {
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None, "num_key_value_heads": None},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1, "head_dim": None},
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention"], "ssm_state_size": 16, "mamba_num_heads": 8,
        "mamba_head_dim": 16, "n_groups": 2, "moe_shared_expert_intermediate_size": 32,
    },
}  # fmt: skip
FAMILIES = [
    "mixtral", "phimoe", "minimax_m2", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "deepseek_v2",
    "deepseek_v3", "deepseek_v4", "glm4_moe", "olmoe", "jamba", "lfm2_moe", "granitemoe", "aria_text", "hy_v3",
    "ernie4_5_moe", "nemotron_h", "gpt_oss", "llama4_text", "dbrx", "gpt_neox", "falcon", "bloom", "mpt",
    "gpt_bigcode", "phi3", "glm4",
]  # fmt: skip
EXPORTED = [
    "mixtral", "granitemoe", "hy_v3", "qwen3_next", "qwen3_5_moe_text", "nemotron_h", "lfm2_moe", "gpt_oss",
    "llama4_text", "gpt_neox", "mpt", "gpt_bigcode", "phi3",
]  # fmt: skip
TOKENS = torch.arange(64).reshape(2, 32).remainder(60)


def built(kind: str):
    """A small model of a family in bfloat16, with every matrix drawn anew."""
    known = transformers.AutoConfig.for_model(kind)
    own = OWN.get(kind, {})
    dims = {key: x for key, x in SMALL.items() if key not in own and (key == "pad_token_id" or hasattr(known, key))}
    dims |= {key: x for key, x in own.items() if x is not None}
    config = transformers.AutoConfig.for_model(kind, **dims)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.05)
    return model.eval()


def saved(model, folder: Path, of_the_hub: bool) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder, save_original_format=of_the_hub)
    return load_file(folder / "model.safetensors")


def layers_of(state: dict[str, torch.Tensor]):
    """Headers of an NVFP4 export that has these tensors' names, and the weight each layer stands for, [E, N, K]."""
    refs, wanted = [], {}
    for name, x in state.items():
        if x.ndim == 2 and name.endswith(".weight") and x.shape[1] % 16 == 0 and "embed" not in name:
            refs += nvfp4(name.removesuffix(".weight"), *x.shape)
            wanted[name.removesuffix(".weight")] = x[None]
        elif x.ndim == 3 and len(x) == EXPERTS and not name.endswith(".weight"):
            refs += nvfp4_3d(name, *x.shape)
            wanted[name] = x
    return refs, wanted


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_layer_finds_its_rows(tmp_path, kind):
    model = built(kind)
    hub, held = (saved(model, tmp_path / name, name == "hub") for name in ("hub", "v5"))
    config = {"model_type": kind}
    for state, source in ((hub, "v5"), (held, "hub"), (hub, "hub")):
        refs, wanted = layers_of(state)
        found = recognise(refs)
        assert {layer.name for layer in found.layers} == wanted.keys()
        with Source(tmp_path / source, Checkpoint(tmp_path, "ours", whole=True, config=config), found) as theirs:
            for layer in found.layers:
                for e, expected in enumerate(wanted[layer.name]):
                    rows = widen(theirs.rows(layer, e, 0, grid(layer).rows))
                    np.testing.assert_array_equal(rows, expected.float().numpy(), layer.name)


@pytest.mark.parametrize("kind", EXPORTED)
def test_modelopts_export_comes_back_bit_for_bit(tmp_path, kind, monkeypatch):
    """Quantised and exported by modelopt; every layer requantised from either way of saving the model."""
    mtq = pytest.importorskip("modelopt.torch.quantization")
    from modelopt.torch.export import export_hf_checkpoint

    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path))  # modelopt writes classes that it makes there
    monkeypatch.setattr("tempfile.tempdir", None)
    model = built(kind)
    for name in ("hub", "v5"):
        saved(model, tmp_path / name, name == "hub")
    mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, lambda one: one(TOKENS, use_cache=False))
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=tmp_path / "export")
    for source in ("hub", "v5"):
        with pair(tmp_path / "export", tmp_path / source) as both:
            after = both.requantised()
            assert len(both.recognised.layers) >= 8
            for layer in both.recognised.layers:
                assert_equal(layer, after, both.files)
