"""Checkpoints that the exporters' own packages write: silent when sound, named when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme  # noqa: E402
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from auditor.audit import Depth  # noqa: E402
from tests.audits import audited, bad, codes  # noqa: E402

pytestmark = pytest.mark.clients

LLAMA = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 32,
}  # fmt: skip


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(torch.bfloat16)


def qparams(w: torch.Tensor, args: object, top: torch.Tensor | None) -> torch.Tensor:
    """The scales of a weight, by the package's own arithmetic."""
    size, strategy = args.group_size, str(getattr(args.strategy, "value", args.strategy))  # type: ignore[attr-defined]
    if strategy in ("group", "tensor_group"):
        blocks = w.reshape(len(w), -1, size)
        low, high = blocks.amin(-1), blocks.amax(-1)
    elif strategy == "channel":
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    elif strategy == "block":
        rows, columns = args.block_structure  # type: ignore[attr-defined]
        tiles = w.reshape(len(w) // rows, rows, -1, columns)
        low, high = tiles.amin((1, 3)), tiles.amax((1, 3))
    else:
        low, high = w.amin().reshape(1), w.amax().reshape(1)
    return calculate_qparams(low, high, args, global_scale=top)[0]


FORMATS = {
    "NVFP4": ("nvfp4-pack-quantized", "ct-nvfp4"),
    "NVFP4A16": ("nvfp4-pack-quantized", "ct-nvfp4"),
    "MXFP4": ("mxfp4-pack-quantized", "ct-mxfp4"),
    "MXFP8": ("mxfp8-quantized", "ct-mxfp8"),
    "MXFP6A16": ("mxfp6-pack-quantized", "ct-mxfp6"),
    "FP8": ("float-quantized", "ct-fp8"),
    "FP8_DYNAMIC": ("float-quantized", "ct-fp8-channel"),
    "FP8_BLOCK": ("float-quantized", "ct-fp8-block"),
    "W4A16": ("pack-quantized", "ct-pack-quantized"),
    "W8A8": ("int-quantized", "integer"),
}


def export(preset: str, root: Path) -> dict[str, torch.Tensor]:
    """A Llama whose linear layers went through compressed-tensors' compressor, with the config it writes."""
    layout = FORMATS[preset][0]
    scheme = preset_name_to_scheme(preset, ["Linear"])
    compressor = BaseCompressor.get_value_from_registry(layout)
    model = llama()
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    fused = {"q": "qkv", "k": "qkv", "v": "qkv", "g": "gu", "u": "gu"}
    keys = {n: n.rpartition(".")[0] + fused.get(n.rpartition(".")[2][0], n) for n in linears}
    tops: dict[str, torch.Tensor] = {}
    for name in linears:
        own = tensors[f"{name}.weight"].abs().amax().float()
        tops[keys[name]] = torch.maximum(own, tops.get(keys[name], own))
    for name in linears:
        weight = tensors.pop(f"{name}.weight")
        state = {"weight": weight}
        top = None
        if "NVFP4" in preset:
            amax = tops[keys[name]]
            top = generate_gparam(-amax.reshape(1), amax.reshape(1))
            state["weight_global_scale"] = top
        state["weight_scale"] = qparams(weight.float() if top is not None else weight, scheme.weights, top)
        if preset == "NVFP4":
            state["input_global_scale"] = torch.tensor([2688.0 / 3.5])
        if preset == "FP8":
            state["input_scale"] = torch.tensor([0.01], dtype=torch.bfloat16)
        for leaf, tensor in compressor.compress(state, scheme).items():
            if tensor is not None:
                tensors[f"{name}.{leaf}"] = tensor.contiguous()
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=layout, ignore=["lm_head"], quantization_status="compressed"
    )
    model.config.save_pretrained(root)
    content = json.loads((root / "config.json").read_text())
    content["quantization_config"] = json.loads(json.dumps(config.to_dict(), default=str))
    (root / "config.json").write_text(json.dumps(content))
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("depth", list(Depth), ids=lambda d: d.label)
@pytest.mark.parametrize("preset", FORMATS)
def test_compressed_tensors(preset: str, depth: Depth, tmp_path: Path) -> None:
    export(preset, tmp_path)
    audit = audited(tmp_path, depth)
    assert not bad(audit)
    assert audit.formats == (FORMATS[preset][1],)
    assert bool(audit.skipped) is (preset in ("W4A16", "W8A8", "MXFP6A16"))


def nan_scale(tensors: dict[str, torch.Tensor], name: str) -> tuple[str, str]:
    tensors[f"{name}.weight_scale"].view(torch.uint8)[3, 1] = 0x7F
    return "SCL101", f"{name}.weight_scale"


def nan_e8m0(tensors: dict[str, torch.Tensor], name: str) -> tuple[str, str]:
    tensors[f"{name}.weight_scale"][2, 1] = 255
    return "SCL106", f"{name}.weight_scale"


def infinite_scale(tensors: dict[str, torch.Tensor], name: str) -> tuple[str, str]:
    tensors[f"{name}.weight_scale"].view(-1)[0] = float("inf")
    return "SCL108", f"{name}.weight_scale"


def other_global(tensors: dict[str, torch.Tensor], name: str) -> tuple[str, str]:
    tensors["model.layers.0.self_attn.v_proj.weight_global_scale"] *= 1.25
    return "GLB102", "model.layers.0.self_attn.q_proj.weight_global_scale"


def zero_input(tensors: dict[str, torch.Tensor], name: str) -> tuple[str, str]:
    tensors[f"{name}.input_global_scale"].zero_()
    return "ACT101", f"{name}.input_global_scale"


@pytest.mark.parametrize(
    ("preset", "damage"),
    [("NVFP4", nan_scale), ("NVFP4", other_global), ("NVFP4", zero_input), ("NVFP4A16", nan_scale),
     ("MXFP4", nan_e8m0), ("MXFP8", nan_e8m0), ("FP8", infinite_scale), ("FP8_DYNAMIC", infinite_scale),
     ("FP8_BLOCK", infinite_scale)],
)  # fmt: skip
def test_compressed_tensors_damaged(
    preset: str, damage: Callable[[dict[str, torch.Tensor], str], tuple[str, str]], tmp_path: Path
) -> None:
    tensors = export(preset, tmp_path)
    expected = damage(tensors, "model.layers.0.self_attn.o_proj")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert bad(audited(tmp_path)) == {expected}


def test_safetensors_writes_what_the_header_reader_reads(tmp_path: Path) -> None:
    """Every dtype that torch has and safetensors stores."""
    names = ("float32", "float16", "bfloat16", "float64", "int8", "uint8", "int32", "int64", "bool")
    tensors = {f"t.{name}": torch.ones(3, 5, dtype=getattr(torch, name)) for name in names}
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        tensors[f"t.{name}"] = torch.ones(3, 5).to(getattr(torch, name))
    tensors["t.scalar"], tensors["t.empty"] = torch.tensor(1.0), torch.ones(0, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    audit = audited(tmp_path, Depth.FULL)
    assert {row.name: row.shape for row in audit.tensors} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert load_file(tmp_path / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt_oss", "mixtral"])
def test_unquantised_models_of_transformers(kind: str, tmp_path: Path) -> None:
    small = LLAMA | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    names = {"llama": "Llama", "qwen3_moe": "Qwen3Moe", "gpt_oss": "GptOss", "mixtral": "Mixtral"}
    config = getattr(transformers, f"{names[kind]}Config")(**(LLAMA if kind == "llama" else small))
    model = getattr(transformers, f"{names[kind]}ForCausalLM")(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    for depth in Depth:
        audit = audited(tmp_path, depth)
        assert not audit.findings
        assert not audit.formats
    assert len(audit.shards) > 1


def test_fine_grained_fp8_of_transformers(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "plain")
    try:
        quantised = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization_config=transformers.FineGrainedFP8Config(), dtype=torch.bfloat16
        )
        quantised.save_pretrained(tmp_path / "fp8")
    except (RuntimeError, ValueError, ImportError) as error:
        pytest.skip(f"not without a GPU: {error}")
    audit = audited(tmp_path / "fp8", Depth.FULL)
    if not audit.formats:
        pytest.skip("transformers dequantised it: there is no GPU")
    assert not bad(audit)
    assert audit.formats == ("deepseek-fp8",)


@pytest.mark.parametrize(
    ("preset", "labels"),
    [
        ("NVFP4_DEFAULT_CFG", {"modelopt-nvfp4"}),
        ("FP8_DEFAULT_CFG", {"modelopt-fp8"}),
        ("MXFP8_DEFAULT_CFG", {"modelopt-mxfp8"}),
    ],
)
def test_modelopt(preset: str, labels: set[str], tmp_path: Path) -> None:
    mtq = pytest.importorskip("modelopt.torch.quantization")
    exporter = pytest.importorskip("modelopt.torch.export")
    model = llama()
    model.config.architectures = ["LlamaForCausalLM"]
    batch = torch.randint(0, 64, (4, 16))
    mtq.quantize(model, getattr(mtq, preset), lambda m: m(batch))
    exporter.export_hf_checkpoint(model, export_dir=tmp_path)
    for depth in Depth:
        audit = audited(tmp_path, depth)
        assert not bad(audit)
        assert set(audit.formats) == labels
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale"
    scale = tensors[name]
    if scale.dtype == torch.float32:
        scale.fill_(float("nan"))
    else:
        scale.view(torch.uint8).view(-1)[0] = 0xFF
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = {"NVFP4": "SCL101", "FP8_D": "SCL108", "MXFP8": "SCL106"}[preset[:5]]
    assert codes(audited(tmp_path)) == [expected]
