"""Naming habits of model families, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Parts of a name that stand for one another.
SYNONYMS: tuple[frozenset[str], ...] = (
    frozenset({"mlp", "block_sparse_moe", "feed_forward", "ffn"}),
    frozenset({"self_attn", "attention", "attn"}),
    frozenset({"shared_expert", "shared_experts", "shared_mlp", "share_expert"}),
    frozenset({"gate_proj", "w1", "wgate"}),
    frozenset({"up_proj", "w3"}),
    frozenset({"down_proj", "w2"}),
    frozenset({"q_a_proj", "wq_a"}),
    frozenset({"q_b_proj", "wq_b"}),
    frozenset({"kv_proj", "wkv"}),
    frozenset({"o_a_proj", "wo_a"}),
    frozenset({"o_b_proj", "wo_b"}),
    frozenset({"lm_head", "embed_out", "head"}),
)
# Runs of parts that stand for one another: names on the hub, and what transformers 5 calls them.
PHRASES: tuple[tuple[str, str], ...] = (
    ("experts.gate_up_proj", "input_linear"),
    ("experts.down_proj", "output_linear"),
    ("experts.gate_up_proj", "experts.fc1"),
    ("experts.down_proj", "experts.fc2"),
    ("mlp.experts.gate_proj", "moe.gate_proj"),
    ("mlp.experts.up_proj", "moe.up_proj"),
    ("mlp.experts.down_proj", "moe.down_proj"),
    ("router", "router.layer"),
    ("mlp.gate", "mlp.router"),
    ("mlp.gate", "mlp.router.gate"),
    ("block_sparse_moe.gate", "mlp.router"),
    ("indexer.compressor", "compressor.indexer"),
    ("indexer.wq_b", "compressor.indexer.q_b_proj"),
    ("indexer.weights_proj", "compressor.indexer.scorer.weights_proj"),
    ("index_q_proj", "indexer.q_proj"),
    ("index_k_proj", "indexer.k_proj"),
)
# What may stand before "layers.0" in the name of a text model's tensor; other prefixes are other models.
TEXT_PREFIXES = frozenset({
    "", "model", "model.language_model", "language_model.model", "language_model", "model.text_model", "text_model",
    "model.language_model.model", "language_model.model.model", "transformer", "model.model", "llm", "llm.model",
    "thinker.model", "model.llm",
})  # fmt: skip


class Fused(NamedTuple):
    """A matrix whose rows are those of its ``parts``, one after another."""

    name: str
    parts: tuple[str, ...]


FUSED: tuple[Fused, ...] = (
    Fused("gate_up_proj", ("gate_proj", "up_proj")),
    Fused("w13", ("w1", "w3")),
    Fused("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    Fused("fused_qkv_a_proj_with_mqa", ("q_a_proj", "kv_a_proj_with_mqa")),
)
HALVES = frozenset({"gate_up_proj", "w13"})  # parts of equal height: no sibling is needed to cut them
# Model types whose 3-D gate_up rows alternate (gate 0, up 0, gate 1, ...); all others put all gate rows first.
INTERLEAVED = frozenset({"gpt_oss"})


def synonyms(part: str) -> tuple[str, ...]:
    """Other spellings of one part of a name, sorted."""
    return tuple(sorted(other for group in SYNONYMS if part in group for other in group - {part}))


# Fused matrices whose rows lie in an order that only the model's code knows: by head, by group of heads, or in line.
BLENDED: Mapping[str, frozenset[str]] = {
    "query_key_value": frozenset({"q_proj", "k_proj", "v_proj", "query", "key", "value"}),
    "c_attn": frozenset({"q_proj", "k_proj", "v_proj"}),
    "Wqkv": frozenset({"q_proj", "k_proj", "v_proj"}),
    "wqkv": frozenset({"q_proj", "k_proj", "v_proj", "wq", "wk", "wv"}),
    "qkv": frozenset({"q_proj", "k_proj", "v_proj"}),
    "in_proj_qkvz": frozenset({"in_proj_qkv", "in_proj_z"}),
    "in_proj_ba": frozenset({"in_proj_b", "in_proj_a"}),
}
# Lists of an expert's layers, and the matrix that holds those of all experts, one below the other.
STACKED: Mapping[str, str] = {"w1_linear": "w1", "v1_linear": "v1", "w2_linear": "w2"}
