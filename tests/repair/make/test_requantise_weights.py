"""Which weights a recipe takes, why others stay, and what is refused: parts of what belongs together, and nonsense."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import auditor
from auditor.checkpoint import open_checkpoint
from auditor.finding import Severity
from quant.errors import RepairError
from repair.make import recipefile
from repair.make.layouts import Layout
from repair.make.recipe import PRESETS, Ragged, Recipe
from repair.make.requantise import plan
from tests.raw import raw
from tests.repair.make.requantising import EXPORTS, requantise, tensors
from tests.repair.make.unquantised import E, H, Model, source


def left(model: Model, folder: Path, recipe: Recipe) -> dict[str, str]:
    return {one.tensor: one.reason for one in plan(open_checkpoint(model.write(folder)), recipe).found.left}


def test_why_the_others_stay(tmp_path: Path):
    found = left(source("deepseek"), tmp_path / "src", recipefile.load("nvfp4_mlp_only_mse-fp8_cast_kv"))
    assert found["lm_head.weight"] == "excluded by *lm_head*"
    assert found["model.embed_tokens.weight"] == "no linear"
    assert found["model.layers.0.mlp.gate.weight"] == "excluded by *mlp.gate.*"
    assert found["model.layers.0.self_attn.o_proj.weight"] == "not selected"
    assert found["model.layers.2.mlp.gate_proj.weight"] == "excluded: beyond the 2 layers, an MTP layer"
    assert "model.layers.0.mlp.shared_experts.up_proj.weight" not in found


def test_experts_only_leaves_shared_experts(tmp_path: Path):
    found = left(source("deepseek"), tmp_path / "src", recipefile.load("nvfp4_experts_only_mse-fp8_cast_kv"))
    assert found["model.layers.0.mlp.shared_experts.up_proj.weight"] == "not selected"


def test_what_is_ragged_stays_with_what_must_be_like_it(tmp_path: Path):
    """One expert's down of 40 columns: no expert of that layer is quantised, those of the other are."""
    model = source("qwen3moe")
    name = "model.layers.0.mlp.experts.1.down_proj"
    model.tensors[f"{name}.weight"] = raw("BF16", np.ones((H, 40)))
    found = left(model, tmp_path / "src", Recipe("t", modules=PRESETS["experts"]))
    assert found[f"{name}.weight"] == "rows of 40, no multiple of 16"
    assert found["model.layers.0.mlp.experts.2.up_proj.weight"] == f"{name} is ragged, and it goes with it"
    assert not any("layers.1.mlp.experts" in one for one in found)
    with pytest.raises(RepairError, match=r"experts\.1\.down_proj\.weight: its rows of 40"):
        plan(open_checkpoint(tmp_path / "src"), Recipe("t", ragged=Ragged.REFUSE))
    requantise(tmp_path / "src", tmp_path / "new", Recipe("t"))
    made = tensors(tmp_path / "new")
    assert made[f"{name}.weight"].dtype == "BF16"
    assert not [f for f in auditor.scan(tmp_path / "new").findings if f.severity is not Severity.INFO]


PARTS = [
    (("*q_proj*",), (), "k_proj.weight: is not selected, but model.layers.0.self_attn.q_proj is"),
    (("*mlp*",), ("*experts.2.*",), "experts.2.*not selected.* wants them alike"),
    (("*mlp*",), ("*.down_proj*",), "down_proj.* wants them alike"),
    (("*mlp*",), ("*.1.mlp.experts.0.up_proj",), "experts.0.up_proj.weight: is not selected"),
]


@pytest.mark.parametrize(("modules", "exclude", "message"), PARTS)
def test_a_part_of_what_belongs_together_is_refused(modules, exclude, message, tmp_path: Path):
    root = source("qwen3moe").write(tmp_path / "src")
    with pytest.raises(RepairError, match=message):
        plan(open_checkpoint(root), Recipe("t", modules=modules, exclude=exclude))


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("kind", ["llama4", "qwen3moe_fused"])
def test_a_part_of_fused_experts_is_refused(kind: str, layout: Layout, tmp_path: Path):
    root = source(kind).write(tmp_path / "src")
    with pytest.raises(RepairError, match=r"experts\.down_proj: is not selected.* wants them alike"):
        plan(open_checkpoint(root), Recipe("t", exclude=("*experts.down_proj",), layout=layout))


def test_a_missing_expert_is_named(tmp_path: Path):
    model = source("qwen3moe")
    del model.tensors["model.layers.1.mlp.experts.0.up_proj.weight"]
    with pytest.raises(RepairError, match=r"layers\.1\.mlp\.experts\.0\.up_proj: is not there"):
        plan(open_checkpoint(model.write(tmp_path / "src")), Recipe("t"))


def test_an_absurd_expert_number_costs_nothing(tmp_path: Path):
    model = source("qwen3moe")
    model.tensors["model.layers.1.mlp.experts.99999999999999.up_proj.weight"] = raw("BF16", np.ones((16, 16)))
    with pytest.raises(RepairError, match="is not there"):
        plan(open_checkpoint(model.write(tmp_path / "src")), Recipe("t"))


def test_a_quantised_source_is_refused_by_name(tmp_path: Path):
    with pytest.raises(RepairError, match=r"down_proj\.weight: is quantised already"):
        plan(open_checkpoint(EXPORTS / "llama_nvfp4"), Recipe("t"))
    model = source("llama")
    model.config["quantization_config"] = {"quant_method": "bitsandbytes"}
    with pytest.raises(RepairError, match=r"config\.json: quantization_config: declares"):
        plan(open_checkpoint(model.write(tmp_path / "src")), Recipe("t"))


def test_a_fused_tensor_that_is_not_understood(tmp_path: Path):
    model = source("llama")
    model.tensors["model.layers.0.block_sparse_moe.input_linear.weight"] = raw("BF16", np.ones((2, 32, 16)))
    with pytest.raises(RepairError, match="not known to hold experts"):
        plan(open_checkpoint(model.write(tmp_path / "src")), Recipe("t"))
    recipe = Recipe("t", exclude=("*input_linear*",))
    assert plan(open_checkpoint(tmp_path / "src"), recipe).found.sets


def test_fused_experts_whose_loaders_want_other_names(tmp_path: Path):
    model = source("qwen3moe_fused")
    model.config["model_type"] = "mixtral"
    with pytest.raises(RepairError, match="w1, w2, w3"):
        plan(open_checkpoint(model.write(tmp_path / "src")), Recipe("t"))


@pytest.mark.parametrize("shape", [(E, 16, 16), (E, 64, 40), (E, 40, 96), (E + 1, 64, 48), (64, 48), (E, 64, 48, 1)])
def test_shapes_of_fused_experts_that_do_not_fit(shape: tuple[int, ...], tmp_path: Path):
    """Gate and up are [3, 96, 64]: down must be [3, 64, 48]."""
    model = source("qwen3moe_fused")
    model.tensors["model.layers.1.mlp.experts.down_proj"] = raw("BF16", np.ones(shape))
    with pytest.raises(RepairError, match=re.escape(f"[3, 96, 64] and {list(shape)} do not fit")):
        plan(open_checkpoint(model.write(tmp_path / "src")), Recipe("t"))


def test_weights_of_other_dtypes_and_none(tmp_path: Path):
    model = source("llama")
    model.tensors["model.layers.0.mlp.extra.weight"] = raw("F64", np.ones((4, 16)))
    model.tensors["model.layers.0.mlp.none.weight"] = raw("BF16", np.ones((0, 16)))
    found = left(model, tmp_path / "src", Recipe("t"))
    assert found["model.layers.0.mlp.extra.weight"] == "F64 weights are not quantised"
    assert found["model.layers.0.mlp.none.weight"] == "holds no weights"


def test_a_model_that_stores_its_linears_turned(tmp_path: Path):
    model = source("llama")
    model.config["model_type"] = "gpt2"
    assert set(left(model, tmp_path / "src", Recipe("t", modules=PRESETS["mlp"])).values()) >= {
        "stored [in, out], as no loader of NVFP4 reads it"
    }
