"""Converted checkpoints in the hands of the packages that read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from auditor.checkpoint import open_checkpoint  # noqa: E402
from repair.make import convert  # noqa: E402
from repair.make.folder import make  # noqa: E402
from repair.make.layouts import Layout  # noqa: E402
from repair.make.sources import Sources  # noqa: E402

pytestmark = pytest.mark.clients
CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
EXPORTS = Path(__file__).parents[1] / "data" / "exports"
LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def converted(source: Path, target: Path, layout: Layout) -> Path:
    checkpoint = open_checkpoint(source)
    with Sources(checkpoint) as sources:
        job, _ = convert.plan(checkpoint, sources, layout)
        return make(job, target).folder


def llama(root: Path, algo: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A Llama in modelopt's layout, weights alone quantised, and what its weights are in float32."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float()
    held, plain = {}, {}
    for name, tensor in model.state_dict().items():
        plain[name] = tensor.clone()
        if not name.endswith("_proj.weight"):
            held[name] = tensor.clone()
            continue
        codes = torch.randint(0, 256, (tensor.shape[0], tensor.shape[1] // 2), dtype=torch.uint8)
        scale = torch.randint(0x20, 0x50, (tensor.shape[0], tensor.shape[1] // 16), dtype=torch.uint8)
        wide = torch.rand(()) * 0.01 + 0.001
        if algo == "FP8":
            raw = torch.randint(0, 0x60, tensor.shape, dtype=torch.uint8)
            held |= {name: raw.view(torch.float8_e4m3fn), f"{name}_scale": wide}
            plain[name] = raw.view(torch.float8_e4m3fn).float() * wide
            held[name.replace("weight", "input_scale")] = torch.tensor(0.01)
            continue
        held |= {name: codes, f"{name}_scale": scale.view(torch.float8_e4m3fn), f"{name}_scale_2": wide}
        nibbles = torch.stack([codes & 15, codes >> 4], -1).flatten(1).long()
        value = LEVELS[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0)
        step = scale.view(torch.float8_e4m3fn).float() * wide
        plain[name] = value * step.repeat_interleave(16, 1)
    root.mkdir()
    save_file(held, root / "model.safetensors", {"format": "pt"})
    told = {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"]}
    written = {**config.to_dict(), "architectures": ["LlamaForCausalLM"], "quantization_config": told}
    (root / "config.json").write_text(json.dumps(written))
    return root, plain


def test_transformers_computes_the_same_logits(tmp_path):
    """Weights alone quantised.  compressed-tensors decompresses in bfloat16: that is the noise."""
    source, plain = llama(tmp_path / "src", "W4A16_NVFP4")
    folder = converted(source, tmp_path / "new", CT)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(told.values()), told
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(source)).bfloat16()
    reference.load_state_dict(plain)
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        ours, theirs = model(tokens).logits.float(), reference(tokens).logits.float()
    top = float(theirs.abs().max())
    assert top > 0.1
    assert float((ours - theirs).abs().max()) < 0.05 * top
    assert float((ours - theirs).square().mean().sqrt()) < 0.01 * float(theirs.square().mean().sqrt())


@pytest.mark.parametrize("name", ["llama_nvfp4", "llama_fp8", "llama_fp8_pc_pt", "llama_fp8_pb_wo", "qwen3moe_nvfp4"])
def test_compressed_tensors_decompresses_to_the_same_weights(tmp_path, name):
    """Its own compressor, with the scheme of the configuration that was written."""
    source = EXPORTS / name
    folder = converted(source, tmp_path / "new", CT)
    old, new = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = next(iter(QuantizationConfig.model_validate(told).config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    seen = 0
    for scale in [key for key in new if key.endswith(".weight_scale")]:
        module = scale.removesuffix(".weight_scale")
        state = {key.removeprefix(f"{module}."): t for key, t in new.items() if key.startswith(f"{module}.")}
        found = compressor.decompress(state, scheme)["weight"].float()
        want = _modelopt(module, old)
        torch.testing.assert_close(found, want, rtol=2.0**-7, atol=0)  # it computes in bfloat16
        seen += 1
    assert seen > 1


def _modelopt(module: str, held: dict[str, torch.Tensor]) -> torch.Tensor:
    """A weight as modelopt's layout means it, float32."""
    weight, scale = held[f"{module}.weight"], held[f"{module}.weight_scale"].float()
    if weight.dtype != torch.uint8:
        if scale.ndim == 4:
            rows, columns = weight.shape
            scale = scale[:, 0, :, 0].repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        return weight.float() * (scale[:, None] if scale.ndim == 1 else scale)
    nibbles = torch.stack([weight & 15, weight >> 4], -1).flatten(1).long()
    value = LEVELS[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0)
    return value * (scale * held[f"{module}.weight_scale_2"]).repeat_interleave(16, 1)


@pytest.mark.parametrize("name", ["llmc_llama_nvfp4", "llmc_llama_nvfp4_mse"])
def test_modelopt_dequantises_to_the_same_weights(tmp_path, name):
    """Its own tensor class, for the way back."""
    quantised = pytest.importorskip("modelopt.torch.quantization.qtensor")
    source = EXPORTS / name
    folder = converted(source, tmp_path / "new", MODELOPT)
    old, new = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    seen = 0
    for key in [key for key in new if key.endswith(".weight_scale_2")]:
        module = key.removesuffix(".weight_scale_2")
        codes = new[f"{module}.weight"]
        shape = torch.Size((codes.shape[0], codes.shape[1] * 2))
        tensor = quantised.NVFP4QTensor(shape, torch.float32, codes)
        found = tensor.dequantize(
            torch.float32, scale=new[f"{module}.weight_scale"], double_scale=new[key], block_sizes={-1: 16}
        )
        packed, scale = old[f"{module}.weight_packed"], old[f"{module}.weight_scale"].float()
        nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(1).long()
        value = LEVELS[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0)
        want = value * (scale / old[f"{module}.weight_global_scale"]).repeat_interleave(16, 1)
        torch.testing.assert_close(found, want, rtol=2.67 * 2.0**-24, atol=0)
        seen += 1
    assert seen
