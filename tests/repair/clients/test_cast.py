"""gpt-oss cast to NVFP4 and read by real programs: the same weights, value for value, and the same logits.

A tiny model with random weights, written by transformers, its experts packed to MXFP4 by modelopt.  The source is read
by transformers' own dequantisation, the casts by compressed-tensors' and by modelopt's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("compressed_tensors")
pytest.importorskip("modelopt")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from repair.make.activations import Ones  # noqa: E402
from repair.make.layouts import Layout  # noqa: E402
from tests.repair.clients.serving import logits  # noqa: E402
from tests.repair.make.mxfp4 import cast  # noqa: E402

pytestmark = pytest.mark.clients
CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
EXPERTS = 32
SMALL = {
    "num_hidden_layers": 3, "num_local_experts": EXPERTS, "num_experts_per_tok": 4, "vocab_size": 256,
    "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "sliding_window": 16, "max_position_embeddings": 128,
}  # fmt: skip


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """blocks [E, N, K / 32, 16] and scales [E, N, K / 32] of a weight [E, N, K], by modelopt."""
    from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor

    made, scales = MXFP4QTensor.quantize(weight.contiguous(), 32)
    e, n, k = weight.shape
    return made._quantized_data.reshape(e, n, k // 32, 16), scales.reshape(e, n, k // 32).to(torch.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as published ones are laid out."""
    torch.manual_seed(5)
    root = tmp_path_factory.mktemp("gpt-oss")
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**SMALL)).to(torch.bfloat16)
    state = dict(model.state_dict())
    for name in [name for name in state if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        state[f"{name}_blocks"], state[f"{name}_scales"] = pack(state.pop(name).transpose(1, 2))
    for name in [name for name in state if name.endswith("bias")]:
        state[name] = torch.randn_like(state[name]) / 10
    save_file({name: x.contiguous() for name, x in state.items()}, root / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(root)
    config = json.loads((root / "config.json").read_text())
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": plain}
    (root / "config.json").write_text(json.dumps(config))
    return root


def by_transformers(root: Path) -> torch.nn.Module:
    """The source, dequantised by transformers."""
    more = {"quantization_config": transformers.Mxfp4Config(dequantize=True)}
    return transformers.AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16, **more).float()


def by_compressed_tensors(stored: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """One expert's matrix [N, K], decompressed in float32."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16)
    codes, scale, wide = (stored[f"{module}.weight_{leaf}"] for leaf in ("packed", "scale", "global_scale"))
    values = unpack_fp4_from_uint8(codes, codes.shape[0], 2 * codes.shape[1]).float()
    return dequantize(x_q=values, scale=scale.float(), args=args, global_scale=wide, dtype=torch.float32)


def by_modelopt(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """All experts [E, N, K], dequantised."""
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    made = []
    for codes, scales in zip(stored[name], stored[f"{name}_weight_scale"], strict=True):
        codes, scales = codes.T.contiguous(), scales.T.contiguous()
        tensor = NVFP4QTensor(torch.Size((codes.shape[0], 2 * codes.shape[1])), torch.float32, codes)
        wide = stored[f"{name}_weight_scale_2"]
        made.append(tensor.dequantize(scale=scales, double_scale=wide, block_sizes={-1: 16}))
    return torch.stack(made)


def weights(root: Path, layout: Layout, layer: int) -> dict[str, torch.Tensor]:
    """Fused weights [E, N, K] and biases [E, N] of one layer as transformers orders them."""
    stored, stem = load_file(root / "model.safetensors"), f"model.layers.{layer}.mlp.experts"
    if layout is MODELOPT:
        found = {leaf: by_modelopt(stored, f"{stem}.{leaf}") for leaf in ("gate_up_proj", "down_proj")}
        return found | {f"{leaf}_bias": stored[f"{stem}.{leaf}_bias"].float() for leaf in found}
    parts: dict[str, list[torch.Tensor]] = {"gate_up_proj": [], "down_proj": []}
    biases: dict[str, list[torch.Tensor]] = {"gate_up_proj": [], "down_proj": []}
    for e in range(EXPERTS):
        gate, up, down = (f"{stem}.{e}.{leaf}_proj" for leaf in ("gate", "up", "down"))
        pair = torch.stack([by_compressed_tensors(stored, m) for m in (gate, up)], dim=1)
        parts["gate_up_proj"].append(pair.flatten(0, 1))
        parts["down_proj"].append(by_compressed_tensors(stored, down))
        biases["gate_up_proj"].append(torch.stack([stored[f"{m}.bias"].float() for m in (gate, up)], 1).flatten())
        biases["down_proj"].append(stored[f"{down}.bias"].float())
    return {leaf: torch.stack(x) for leaf, x in parts.items()} | {
        f"{n}_bias": torch.stack(x) for n, x in biases.items()
    }


def put(model: torch.nn.Module, root: Path, layout: Layout) -> torch.nn.Module:
    """The model with the cast's experts in place of its own."""
    for layer in range(SMALL["num_hidden_layers"]):
        experts = model.model.layers[layer].mlp.experts
        for name, value in weights(root, layout, layer).items():
            held = getattr(experts, name)
            held.data = value.transpose(1, 2).contiguous() if value.ndim == 3 else value
    return model


@pytest.mark.parametrize("layout", list(Layout))
def test_every_weight_and_every_logit_is_the_same(source: Path, tmp_path: Path, layout: Layout) -> None:
    rows = cast(source, tmp_path / "dst", layout, Ones() if layout is MODELOPT else None)
    assert all(row.exact == row.blocks for row in rows)
    model = by_transformers(source)
    reference = logits(model)
    for layer in range(SMALL["num_hidden_layers"]):
        experts = model.model.layers[layer].mlp.experts
        for name, value in weights(tmp_path / "dst", layout, layer).items():
            due = getattr(experts, name)
            assert torch.equal(due.transpose(1, 2) if due.ndim == 3 else due, value), name
        assert experts.gate_up_proj.abs().max() > 0
    np.testing.assert_array_equal(logits(put(model, tmp_path / "dst", layout)), reference)


@pytest.mark.parametrize("layout", list(Layout))
def test_the_table_of_a_spread_beyond_17_is_true(source: Path, tmp_path: Path, layout: Layout) -> None:
    """A few blocks lie 18 to 22 octaves down: what is lost is what an independent float64 computation finds."""
    wide = tmp_path / "wide"
    wide.mkdir()
    state = load_file(source / "model.safetensors")
    for e, b, lower in ((0, 0, 19), (3, 5, 20), (3, 6, 22), (7, 2, 18)):
        for leaf in ("gate_up_proj", "down_proj"):
            scales = state[f"model.layers.1.mlp.experts.{leaf}_scales"]
            scales[e, b, 0] = int(scales[e].max()) - lower
    save_file(state, wide / "model.safetensors", {"format": "pt"})
    (wide / "config.json").write_text((source / "config.json").read_text())
    rows = {row.tensor: row for row in cast(wide, tmp_path / "dst", layout)}
    model = by_transformers(wide)
    for layer in range(SMALL["num_hidden_layers"]):
        made = weights(tmp_path / "dst", layout, layer)
        for leaf in ("gate_up_proj", "down_proj"):
            due = getattr(model.model.layers[layer].mlp.experts, leaf).detach().transpose(1, 2).double().numpy()
            lost = ((due - made[leaf].double().numpy()) ** 2).reshape(-1, 16).sum(1)
            row = rows[f"model.layers.{layer}.mlp.experts.{leaf}_blocks"]
            assert row.blocks - row.exact == np.count_nonzero(lost)
            # Float64 sums in another order; and where a set was requantised, the table speaks of modelopt's rounding of
            # block scale times global scale to float32, compressed-tensors divides.
            assert row.error == pytest.approx(lost.sum(), rel=1e-6, abs=0)
            if layer == 1:
                assert lost.any()
                assert row.snr == pytest.approx(10 * np.log10((due**2).sum() / lost.sum()), rel=1e-6)
                assert row.spread >= 18
