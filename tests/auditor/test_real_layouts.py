"""Layouts of published models that look odd and are sound, and what hides beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from tests.audits import about, audited, bad, codes
from tests.forge import Model, make
from tests.layouts import LAYOUTS
from tests.raw import Raw, raw

RNG = np.random.default_rng(1)


def noise(dtype: str, *shape: int) -> Raw:
    """Bytes that are finite in E4M3 and live in E2M1."""
    return Raw(dtype, shape, bytes(RNG.integers(0x10, 0x70, int(np.prod(shape)), dtype=np.uint8)))


def add_nvfp4(model: Model, name: str, rows: int, columns: int, scale: float = 1e-4, inputs: float = 1e-3) -> None:
    model.tensors |= {
        f"{name}.weight": noise("U8", rows, columns // 2),
        f"{name}.weight_scale": noise("F8_E4M3", rows, columns // 16),
        f"{name}.weight_scale_2": raw("F32", np.float32(scale)),
        f"{name}.input_scale": raw("F32", np.float32(inputs)),
    }


def add_fp8(model: Model, name: str, shape: tuple[int, ...], scales: tuple[int, ...], dtype: str = "F32") -> None:
    dot = "." if len(shape) == 2 else "_"
    model.tensors[f"{name}.weight" if len(shape) == 2 else name] = noise("F8_E4M3", *shape)
    model.tensors[f"{name}{dot}weight_scale"] = raw(dtype, np.full(scales, 0.01))


def multimodal() -> Model:
    model = make("modelopt-nvfp4-moe").copy()
    model.tensors = {name.replace("model.", "model.language_model.", 1): t for name, t in model.tensors.items()}
    for module in ("blocks.0.attn.qkv", "blocks.0.mlp.gate_proj", "merger.mlp.0"):
        model.tensors[f"model.visual.{module}.weight"] = raw("BF16", np.ones((8, 8)))
    for part in model.quantization():
        for key in {"ignore", "exclude_modules"} & part.keys():
            part[key] = [x.replace("model.", "model.language_model.", 1) for x in part[key]] + ["model.visual*"]
    quantization = model.config["quantization_config"]
    text = {"model_type": "qwen3_vl_moe_text", "num_hidden_layers": 1}
    model.config = {"model_type": "qwen3_vl_moe", "text_config": text, "quantization_config": quantization}
    return model


def mtp() -> Model:
    """A DeepSeek with an unquantised layer for multi-token prediction that no list names."""
    model = make("modelopt-nvfp4-mla").copy()
    for module in ("eh_proj", "self_attn.o_proj", "mlp.experts.0.gate_proj", "shared_head.head"):
        model.tensors[f"model.layers.2.{module}.weight"] = raw("BF16", np.ones((8, 8)))
    return model


def nemotron_h() -> Model:
    model = make("modelopt-nvfp4").copy()
    for old in list(model.tensors):
        tensor = model.tensors.pop(old)
        new = (
            old.replace("model.layers", "backbone.layers").replace(".mlp.", ".mixer.").replace(".self_attn.", ".mixer.")
        )
        if "gate_proj" not in new:
            model.tensors[new.replace("model.embed_tokens", "backbone.embeddings")] = tensor
    model.tensors["backbone.layers.0.mixer.conv1d.weight"] = raw("BF16", np.ones((8, 1, 4)))
    model.tensors["backbone.layers.0.mixer.A_log"] = raw("F32", np.ones(8))
    model.config |= {"model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"]}
    return model


def odd_sizes() -> Model:
    """One row, one block, no rows at all."""
    model = make("modelopt-nvfp4").copy()
    for rows, columns in ((1, 16), (16, 16), (3, 48), (1, 64), (0, 64)):
        add_nvfp4(model, f"model.layers.0.mlp.x{rows}_{columns}", rows, columns)
    return model


def empty_experts() -> Model:
    model = make("modelopt-3d-gpt-oss").copy()
    for name, tensor in model.tensors.items():
        if "experts" in name and tensor.shape[:1] == (3,):
            model.tensors[name] = Raw(tensor.dtype, (0, *tensor.shape[1:]), b"")
    return model


def single_rows() -> Model:
    """Channel scales [N, 1] of a router-like layer with one row."""
    model = make("ct-fp8-channel").copy()
    add_fp8(model, "model.layers.0.mlp.shared_expert_gate", (1, 1024), (1, 1), "BF16")
    add_fp8(model, "model.layers.0.mlp.tiny", (1, 64), (1, 1), "BF16")
    add_fp8(model, "model.layers.0.mlp.two", (2, 64), (2, 1), "BF16")
    return model


def one_by_one() -> Model:
    model = make("modelopt-fp8").copy()
    add_fp8(model, "model.layers.0.mlp.big", (700, 640), (1, 1))
    model.tensors["model.layers.0.mlp.big.input_scale"] = raw("F32", np.float32(0.01))
    return model


def llama4_fp8() -> Model:
    model = make("modelopt-fp8").copy()
    for leaf in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.feed_forward.experts.{leaf}"
        add_fp8(model, name, (3, 64, 96), ())
        model.tensors[f"{name}_input_scale"] = raw("F32", np.float32(0.01))
    return model


def fused_block_fp8() -> Model:
    model = make("deepseek-fp8-moe").copy()
    name = "model.layers.0.feed_forward.experts.gate_up_proj"
    model.tensors[name] = noise("F8_E4M3", 3, 320, 192)
    model.tensors[f"{name}_scale_inv"] = raw("F32", np.full((3, 3, 2), 0.01))
    return model


def cross_attention() -> Model:
    """Queries come from the decoder, keys and values from the encoder: only k and v agree."""
    model = make("modelopt-nvfp4").copy()
    for leaf, factor in (("q_proj", 1), ("k_proj", 2), ("v_proj", 2)):
        add_nvfp4(model, f"model.layers.0.cross_attn.{leaf}", 32, 64, factor * 1e-4, factor * 1e-3)
    return model


def quark_kv() -> Model:
    model = make("quark-fp8").copy()
    for side in "kv":
        model.tensors[f"model.layers.0.self_attn.{side}_proj.output_scale"] = raw("F32", np.float32(0.02))
    model.config["quantization_config"]["export"]["kv_cache_group"] = ["*k_proj", "*v_proj"]
    return model


def kv_per_head() -> Model:
    model = make("kv-ct").copy()
    model.config["num_key_value_heads"] = 4
    for name in model.tensors:
        if name.endswith((".k_scale", ".v_scale")):
            model.tensors[name] = raw("BF16", np.full((4, 1, 1), 0.02))
    return model


def image_model_marker() -> Model:
    model = make("comfy-fp8").copy()
    model.tensors["scaled_fp8"] = Raw("F8_E4M3", (2,), b"\0\0")
    return model


def zero_rows() -> Model:
    """Ten pruned rows, more than a finding keeps places for: scale 0 over codes 0."""
    model = make("modelopt-fp8-channel").copy()
    name = "model.layers.0.mlp.gate_proj"
    model.poke(f"{name}.weight", 0, bytes(640))
    scales = model.tensors[f"{name}.weight_scale"].values().copy()
    scales[:10] = 0
    model.tensors[f"{name}.weight_scale"] = raw("F32", scales)
    return model


SOUND: list[Callable[[], Model]] = [
    multimodal, mtp, nemotron_h, odd_sizes, empty_experts, single_rows, one_by_one, llama4_fp8, fused_block_fp8,
    cross_attention, quark_kv, kv_per_head, image_model_marker, zero_rows,
]  # fmt: skip


@pytest.mark.parametrize("depth", list(Depth), ids=lambda d: d.label)
@pytest.mark.parametrize("build", SOUND, ids=lambda build: build.__name__)
def test_sound(build: Callable[[], Model], depth: Depth, tmp_path: Path) -> None:
    audit = audited(build().write(tmp_path), depth)
    assert not bad(audit)
    assert not audit.skipped


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_shards_raise_no_false_alarm(layout: str, tmp_path: Path) -> None:
    """A layer's tensors, its fused siblings and its peers may all be in other shards."""
    make(layout).write(tmp_path, 4)
    for shard in tmp_path.glob("*.safetensors"):
        assert not bad(audited(shard, Depth.FULL))


def test_a_vector_in_another_shard_is_not_missing(tmp_path: Path) -> None:
    model = make("modelopt-awq").copy()
    del model.tensors["model.layers.0.mlp.up_proj.pre_quant_scale"]
    model.write(tmp_path)
    assert codes(audited(tmp_path)) == ["ACT107"]
    assert not bad(audited(tmp_path / "model.safetensors"))


def test_a_live_row_among_many_zero_ones(tmp_path: Path) -> None:
    model = zero_rows()
    name = "model.layers.0.mlp.gate_proj.weight_scale"
    model.poke(name, 4 * 12, bytes(4))
    finding = about(audited(model.write(tmp_path)), "SCL108")
    assert [place.index for place in finding.places] == [(12,)]


def test_keys_and_values_of_cross_attention_must_agree(tmp_path: Path) -> None:
    model = cross_attention()
    model.tensors["model.layers.0.cross_attn.v_proj.weight_scale_2"] = raw("F32", np.float32(3e-4))
    assert bad(audited(model.write(tmp_path))) == {("GLB102", "model.layers.0.cross_attn.k_proj.weight_scale_2")}


def test_a_lonely_output_scale(tmp_path: Path) -> None:
    model = quark_kv()
    del model.tensors["model.layers.0.self_attn.v_proj.output_scale"]
    assert codes(audited(model.write(tmp_path))) == ["KVC102"]


@pytest.mark.parametrize(("leaf", "severity"), [("gate_proj", "error"), ("down_proj", "warning")])
def test_an_expert_with_large_activations(leaf: str, severity: str, tmp_path: Path) -> None:
    """The inputs of down projections differ from expert to expert; those of gate projections are the same."""
    model = make("modelopt-nvfp4-moe").copy()
    model.tensors[f"model.layers.0.mlp.experts.3.{leaf}.input_scale"] = raw("F32", np.float32(5000 / 2688))
    assert about(audited(model.write(tmp_path)), "ACT105").severity.label == severity


def test_unaudited_formats_are_listed_with_a_reason(tmp_path: Path) -> None:
    for layout in (name for name in LAYOUTS if name.startswith("int-")):
        audit = audited(make(layout).write(tmp_path / layout))
        assert all("not audited" in skipped.reason for skipped in audit.skipped)


@pytest.mark.parametrize("known", [True, False])
def test_torchao_is_listed_and_what_nobody_knows_is_said(known: bool, tmp_path: Path) -> None:
    """A tensor subclass by its parts; under other names nothing claims it, and nothing passes for sound."""
    model = make("modelopt-fp8").copy()
    codes_, scales = ("._weight_qdata", "._weight_scale") if known else (".data_of", ".scale_of")
    for old in [name for name in model.tensors if name.endswith(("_proj.weight", "_proj.weight_scale"))]:
        new = old.replace(".weight_scale", scales).replace(".weight", codes_)
        model.tensors[new] = model.tensors.pop(old)
    model.config["quantization_config"] = {"quant_method": "torchao", "quant_type": "float8wo"}
    model.hf_quant = None
    audit = audited(model.write(tmp_path))
    assert set(codes(audit)) == (set() if known else {"FMT102"})
    assert {s.tensor for s in audit.skipped} >= {n for n in model.tensors if n.endswith(codes_)}


@pytest.mark.parametrize("algo", ["MXFP4", "MXFP8", "W4A8_NVFP4_FP8"])
def test_fused_experts_that_no_loader_reads_are_listed(algo: str, tmp_path: Path) -> None:
    """As modelopt 0.47 writes them: quantised along the last axis, a scale for 32."""
    rng = np.random.default_rng(0)
    at, experts, rows, columns = "model.layers.0.mlp.experts.down_proj", 4, 64, 128
    wide, half = ("F8_E4M3", columns) if algo == "MXFP8" else ("U8", columns // 2)
    small = "F8_E4M3" if algo.startswith("W4") else "U8"
    tensors = {
        at: raw(wide, rng.integers(0, 120, (experts, rows, half), np.uint8)),
        f"{at}_weight_scale": raw(small, rng.integers(110, 120, (experts, rows, columns // 32), np.uint8)),
    }
    if algo.startswith("W4"):
        tensors |= {f"{at}_{part}": raw("F32", np.float32(0.01)) for part in ("weight_scale_2", "input_scale")}
    model = make("modelopt-nvfp4").copy()
    model.tensors = tensors
    model.config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": algo, "ignore": []}
    model.hf_quant = None
    audit = audited(model.write(tmp_path))
    assert codes(audit) == []
    assert [s.tensor for s in audit.skipped] == [at]
