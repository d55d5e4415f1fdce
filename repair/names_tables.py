"""Naming habits of model families, as data."""

from __future__ import annotations

from typing import NamedTuple

# Parts of a name that stand for one another.
SYNONYMS: tuple[frozenset[str], ...] = (
    frozenset({"mlp", "block_sparse_moe", "feed_forward", "ffn"}),
    frozenset({"self_attn", "attention", "attn"}),
    frozenset({"shared_expert", "shared_experts"}),
    frozenset({"gate_proj", "w1"}),
    frozenset({"up_proj", "w3"}),
    frozenset({"down_proj", "w2"}),
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
