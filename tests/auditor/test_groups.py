"""Which layers are fused on load."""

from __future__ import annotations

import pytest

from auditor.groups import FUSED_SETS, expert_key, fused_sets
from auditor.layer import QuantizedLayer, recognise
from tests.auditor.test_layer import ref


def layers(*names: str) -> list[QuantizedLayer]:
    refs = [r for n in names for r in (ref(f"{n}.weight", "F8_E4M3", 4, 8), ref(f"{n}.weight_scale", "F32"))]
    return recognise(refs).layers


def sets(*names: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(group.parent, group.leaves) for group in fused_sets(layers(*names))]


@pytest.mark.parametrize("leaves", FUSED_SETS)
def test_every_set_of_the_table(leaves: tuple[str, ...]) -> None:
    assert sets(*(f"m.{leaf}" for leaf in reversed(leaves))) == [("m", leaves)]


def test_parents_are_kept_apart() -> None:
    assert sets("a.q_proj", "b.k_proj", "a.v_proj") == [("a", ("q_proj", "v_proj"))]
    assert sets("a.experts.0.gate_proj", "a.experts.1.up_proj") == []


def test_a_set_within_another_is_left_out() -> None:
    assert sets("m.k_proj", "m.v_proj", "m.q_proj") == [("m", ("q_proj", "k_proj", "v_proj"))]
    assert sets("m.k_proj", "m.v_proj") == [("m", ("k_proj", "v_proj"))]


def test_one_member_is_no_set() -> None:
    assert sets("m.gate_proj", "m.down_proj") == []


@pytest.mark.parametrize("parent", ["l.0.cross_attn", "decoder.0.encoder_attn", "x.crossattention", "l.CrossAttention"])
def test_cross_attention(parent: str) -> None:
    assert sets(f"{parent}.q_proj", f"{parent}.k_proj", f"{parent}.v_proj") == [(parent, ("k_proj", "v_proj"))]


def test_self_attention_beside_it_is_whole() -> None:
    (group,) = sets("l.self_attn.q_proj", "l.self_attn.k_proj", "l.self_attn.v_proj")
    assert group[1] == ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model.layers.0.mlp.experts.12.gate_proj", ("model.layers.0.mlp.experts", "gate_proj")),
        ("backbone.layers.1.mixer.experts.0.up_proj", ("backbone.layers.1.mixer.experts", "up_proj")),
        ("model.layers.0.mlp.shared_experts.gate_proj", None),
        ("model.layers.0.mlp.experts.gate_up_proj", None),
        ("model.layers.0.mlp.myexperts.1.gate_proj", None),
    ],
)
def test_expert_key(name: str, key: tuple[str, str] | None) -> None:
    assert expert_key(name) == key
