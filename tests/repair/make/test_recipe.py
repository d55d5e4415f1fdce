"""Patterns against names of real models, as the exporter's quantizer patterns choose them."""

from __future__ import annotations

import pytest

from repair.make.recipe import DISABLED, PRESETS, Recipe

L = "model.layers.3"
# tensor, selected by linears, mlp, experts
CASES = [
    (f"{L}.self_attn.q_proj.weight", True, False, False),
    (f"{L}.mlp.down_proj.weight", True, True, False),
    (f"{L}.mlp.experts.12.up_proj.weight", True, True, True),
    (f"{L}.mlp.experts.gate_up_proj", True, True, True),
    (f"{L}.mlp.shared_expert.up_proj.weight", True, True, False),
    (f"{L}.mlp.shared_experts.up_proj.weight", True, True, False),
    (f"{L}.block_sparse_moe.experts.0.w1.weight", True, True, True),
    (f"{L}.feed_forward.experts.down_proj", True, True, True),
    (f"{L}.feed_forward.shared_expert.up_proj.weight", True, False, False),
    ("backbone.layers.1.mixer.up_proj.weight", True, True, False),
    ("backbone.layers.1.mixer.in_proj.weight", True, False, False),
    (f"{L}.linear_attn.in_proj_qkv.weight", True, False, False),
    (f"{L}.linear_attn.in_proj_a.weight", False, False, False),
    (f"{L}.mlp.gate.weight", False, False, False),
    (f"{L}.mlp.router.weight", False, False, False),
    (f"{L}.block_sparse_moe.gate.weight", False, False, False),
    (f"{L}.mlp.shared_expert_gate.weight", False, False, False),
    (f"{L}.mixer.gate.weight", False, False, False),
    ("lm_head.weight", False, False, False),
    ("mtp.layers.0.mlp.up_proj.weight", False, False, False),
    ("model.mtp.layers.0.mlp.experts.0.up_proj.weight", False, False, False),
    ("model.visual.blocks.0.mlp.linear_fc1.weight", False, False, False),
    ("multi_modal_projector.linear_1.weight", False, False, False),
]


@pytest.mark.parametrize(("tensor", "linears", "mlp", "experts"), CASES, ids=[case[0] for case in CASES])
def test_presets(tensor: str, linears: bool, mlp: bool, experts: bool):
    for preset, wanted in (("linears", linears), ("mlp", mlp), ("experts", experts)):
        assert (Recipe("t", modules=PRESETS[preset]).why_not(tensor) == "") is wanted


def test_exclusions_name_the_pattern_and_win():
    recipe = Recipe("t", exclude=("*.3.*",))
    assert recipe.why_not(f"{L}.mlp.up_proj.weight") == "excluded by *.3.*"
    assert recipe.why_not("lm_head.weight") == "excluded by *lm_head*"
    assert Recipe("t", disabled=False).why_not("lm_head.weight") == ""


def test_a_pattern_matches_a_whole_name_with_or_without_weight():
    for pattern in ("lm_head", "lm_head.weight", "lm_*", "?m_head"):
        assert Recipe("t", modules=(pattern,), disabled=False).why_not("lm_head.weight") == ""
    assert Recipe("t", modules=("head",), disabled=False).why_not("lm_head.weight") == "not selected"


def test_a_hostile_pattern_costs_nothing():
    assert Recipe("t", modules=("*a" * 200 + "b",)).why_not("a" * 5000) == "not selected"


def test_what_a_resumed_run_must_agree_with():
    assert Recipe("t").identity() != Recipe("t", disabled=False).identity()
    assert Recipe("t", name := "x").identity() == Recipe(name).identity()
    assert set(DISABLED) <= set(Recipe("t").identity()["exclude"].split())


@pytest.mark.clients
def test_exclusions_are_modelopts_own():
    """Every pattern that the exporter disables, but for classes of modules that hold no matrix."""
    recipes = pytest.importorskip("modelopt_recipes")
    from pathlib import Path

    import yaml

    path = Path(recipes.__file__).parent / "configs" / "ptq" / "units" / "default_disabled_quantizers.yaml"
    theirs = {item["quantizer_name"] for document in yaml.safe_load_all(path.read_text())
              for item in document if isinstance(item, dict) and "parent_class" not in item}  # fmt: skip
    assert theirs - set(DISABLED) == set()
