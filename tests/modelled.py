"""Tiny architectures: the modules of real models under their real names, hidden size 64 (192 where blocks are 128)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Linear:
    """One weight.  ``shared``: what its fused siblings have in common; ``order``: its place among them.

    ``stem`` is set for fused 3-D experts, whose tensors are called module.<stem><suffix>.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    shared: str
    order: int = 0
    peers: str = ""
    stem: str = ""

    @property
    def plain_name(self) -> str:
        """The tensor's name when it is not quantised."""
        return self.name if self.stem else f"{self.name}.weight"


@dataclass(frozen=True)
class Architecture:
    """Linears, other tensors, and the configuration without its quantisation."""

    linears: tuple[Linear, ...]
    plain: tuple[tuple[str, tuple[int, ...]], ...]
    unlisted: tuple[str, ...]  # modules that an exporter's exclusion list names
    config: dict[str, Any]
    attentions: tuple[str, ...] = field(default=())


VOCABULARY = 48
_ATTENTION = (("q_proj", 0), ("k_proj", 1), ("v_proj", 2))


def _attention(at: str, hidden: int, kv: int) -> Iterator[Linear]:
    for leaf, order in _ATTENTION:
        rows = hidden if leaf == "q_proj" else kv
        yield Linear(f"{at}.{leaf}", (rows, hidden), "attention", f"{at}.qkv", order)
    yield Linear(f"{at}.o_proj", (hidden, hidden), "attention", f"{at}.o_proj")


def _mla(at: str, hidden: int) -> Iterator[Linear]:
    yield Linear(f"{at}.q_a_proj", (32, hidden), "attention", f"{at}.a", 0)
    yield Linear(f"{at}.kv_a_proj_with_mqa", (48, hidden), "attention", f"{at}.a", 1)
    yield Linear(f"{at}.q_b_proj", (96, 32), "attention", f"{at}.q_b_proj")
    yield Linear(f"{at}.kv_b_proj", (128, 32), "attention", f"{at}.kv_b_proj")
    yield Linear(f"{at}.o_proj", (hidden, 64), "attention", f"{at}.o_proj")


def _mlp(
    at: str, hidden: int, inner: int, names: str = "gate_proj up_proj down_proj", kind: str = "mlp", peers: str = ""
) -> Iterator[Linear]:
    gate, up, down = names.split()

    def peer(leaf: str) -> str:
        return f"{peers}.{leaf}" if peers else ""

    yield Linear(f"{at}.{gate}", (inner, hidden), kind, f"{at}.gate_up", 0, peer(gate))
    yield Linear(f"{at}.{up}", (inner, hidden), kind, f"{at}.gate_up", 1, peer(up))
    yield Linear(f"{at}.{down}", (hidden, inner), kind, f"{at}.{down}", 0, peer(down))


def _experts(at: str, count: int, hidden: int, inner: int, names: str = "gate_proj up_proj down_proj") -> list[Linear]:
    return [x for i in range(count) for x in _mlp(f"{at}.{i}", hidden, inner, names, "experts", at)]


def _norms(at: str, hidden: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{at}.input_layernorm.weight", (hidden,)), (f"{at}.post_attention_layernorm.weight", (hidden,))]


def _outer(hidden: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("model.embed_tokens.weight", (VOCABULARY, hidden)), ("model.norm.weight", (hidden,))]


def _config(kind: str, name: str, hidden: int, layers: int = 1, **more: Any) -> dict[str, Any]:
    base = {
        "model_type": kind,
        "architectures": [name],
        "tie_word_embeddings": False,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
    }
    return base | more


def _head(hidden: int) -> Linear:
    return Linear("lm_head", (VOCABULARY, hidden), "head", "lm_head")


def llama(hidden: int = 64, inner: int = 160, kv: int = 32, layers: int = 2) -> Architecture:
    """Dense: q/k/v/o and gate/up/down in each of the layers."""
    linears: list[Linear] = []
    plain = _outer(hidden)
    for i in range(layers):
        at = f"model.layers.{i}"
        linears += [*_attention(f"{at}.self_attn", hidden, kv), *_mlp(f"{at}.mlp", hidden, inner)]
        plain += _norms(at, hidden)
    return Architecture(
        (*linears, _head(hidden)),
        tuple(plain),
        ("model.embed_tokens",),
        _config("llama", "LlamaForCausalLM", hidden, layers, intermediate_size=inner),
        tuple(f"model.layers.{i}.self_attn" for i in range(layers)),
    )


def qwen3_moe(hidden: int = 64, inner: int = 32, count: int = 6) -> Architecture:
    """A layer of routed experts, each a module of its own."""
    at = "model.layers.0"
    linears = [*_attention(f"{at}.self_attn", hidden, 32), *_experts(f"{at}.mlp.experts", count, hidden, inner)]
    plain = [*_outer(hidden), *_norms(at, hidden), (f"{at}.mlp.gate.weight", (count, hidden))]
    plain += [(f"{at}.self_attn.q_norm.weight", (16,)), (f"{at}.self_attn.k_norm.weight", (16,))]
    return Architecture(
        (*linears, _head(hidden)),
        tuple(plain),
        ("model.embed_tokens", f"{at}.mlp.gate"),
        _config("qwen3_moe", "Qwen3MoeForCausalLM", hidden, num_experts=count),
        (f"{at}.self_attn",),
    )


def mixtral(hidden: int = 64, inner: int = 32, count: int = 4) -> Architecture:
    """Experts called w1, w2, w3."""
    at = "model.layers.0"
    moe = f"{at}.block_sparse_moe"
    linears = [
        *_attention(f"{at}.self_attn", hidden, 32),
        *_experts(f"{moe}.experts", count, hidden, inner, "w1 w3 w2"),
    ]
    plain = [*_outer(hidden), *_norms(at, hidden), (f"{moe}.gate.weight", (count, hidden))]
    return Architecture(
        (*linears, _head(hidden)),
        tuple(plain),
        ("model.embed_tokens", f"{moe}.gate"),
        _config("mixtral", "MixtralForCausalLM", hidden),
        (f"{at}.self_attn",),
    )


def deepseek_v3(hidden: int = 64, inner: int = 32, count: int = 4) -> Architecture:
    """Multi-head latent attention, a dense layer, then routed and shared experts."""
    linears = [*_mla("model.layers.0.self_attn", hidden), *_mlp("model.layers.0.mlp", hidden, 2 * inner)]
    at = "model.layers.1"
    linears += [*_mla(f"{at}.self_attn", hidden), *_experts(f"{at}.mlp.experts", count, hidden, inner)]
    linears += _mlp(f"{at}.mlp.shared_experts", hidden, inner)
    plain = [*_outer(hidden), *_norms("model.layers.0", hidden), *_norms(at, hidden)]
    plain += [(f"{at}.mlp.gate.weight", (count, hidden)), (f"{at}.mlp.gate.e_score_correction_bias", (count,))]
    return Architecture(
        (*linears, _head(hidden)),
        tuple(plain),
        ("model.embed_tokens", f"{at}.mlp.gate"),
        _config("deepseek_v3", "DeepseekV3ForCausalLM", hidden, 2),
        ("model.layers.0.self_attn", f"{at}.self_attn"),
    )


def deepseek_v4(hidden: int = 192, inner: int = 64, count: int = 3) -> Architecture:
    """Names of DeepSeek-V4: attn.wq_a and wkv, ffn.experts.N.w1, no prefix."""
    at = "layers.0"
    attn = f"{at}.attn"
    linears = [
        Linear(f"{attn}.wq_a", (64, hidden), "attention", f"{attn}.a", 0),
        Linear(f"{attn}.wkv", (48, hidden), "attention", f"{attn}.a", 1),
        Linear(f"{attn}.wq_b", (192, 64), "attention", f"{attn}.wq_b"),
        Linear(f"{attn}.wo_b", (hidden, 64), "attention", f"{attn}.wo_b"),
        *_experts(f"{at}.ffn.experts", count, hidden, inner, "w1 w3 w2"),
        *_mlp(f"{at}.ffn.shared_experts", hidden, inner, "w1 w3 w2"),
    ]
    plain: list[tuple[str, tuple[int, ...]]] = [
        ("embed.weight", (VOCABULARY, hidden)),
        ("norm.weight", (hidden,)),
        ("head.weight", (VOCABULARY, hidden)),
        (f"{at}.attn_norm.weight", (hidden,)),
        (f"{at}.ffn.gate.weight", (count, hidden)),
    ]
    return Architecture(tuple(linears), tuple(plain), (), _config("deepseek_v4", "DeepseekV4ForCausalLM", hidden))


def gpt_oss(hidden: int = 64, inner: int = 96, count: int = 3) -> Architecture:
    """Fused 3-D experts, gate and up rows interleaved."""
    at = "model.layers.0"
    experts = f"{at}.mlp.experts"
    linears = [
        *_attention(f"{at}.self_attn", hidden, 32),
        Linear(f"{experts}.gate_up_proj", (count, 2 * inner, hidden), "experts", "gate_up", stem="gate_up_proj"),
        Linear(f"{experts}.down_proj", (count, hidden, inner), "experts", "down", stem="down_proj"),
    ]
    plain = [*_outer(hidden), *_norms(at, hidden), (f"{at}.mlp.router.weight", (count, hidden))]
    plain += [(f"{at}.mlp.router.bias", (count,)), (f"{experts}.gate_up_proj_bias", (count, 2 * inner))]
    plain += [(f"{experts}.down_proj_bias", (count, hidden)), (f"{at}.self_attn.sinks", (4,))]
    return Architecture(
        (*linears, _head(hidden)),
        tuple(plain),
        ("model.embed_tokens", f"{at}.mlp.router"),
        _config("gpt_oss", "GptOssForCausalLM", hidden),
        (f"{at}.self_attn",),
    )


def llama4(hidden: int = 64, inner: int = 48, count: int = 3) -> Architecture:
    """Fused 3-D experts, gate and up concatenated, and a shared expert."""
    at = "model.layers.0"
    forward = f"{at}.feed_forward"
    experts = f"{forward}.experts"
    linears = [
        *_attention(f"{at}.self_attn", hidden, 32),
        Linear(f"{experts}.gate_up_proj", (count, 2 * inner, hidden), "experts", "gate_up", stem="gate_up_proj"),
        Linear(f"{experts}.down_proj", (count, hidden, inner), "experts", "down", stem="down_proj"),
        *_mlp(f"{forward}.shared_expert", hidden, inner),
    ]
    plain = [*_outer(hidden), *_norms(at, hidden), (f"{forward}.router.weight", (count, hidden))]
    return Architecture(
        (*linears, _head(hidden)),
        tuple(plain),
        ("model.embed_tokens", f"{forward}.router"),
        _config("llama4_text", "Llama4ForCausalLM", hidden),
        (f"{at}.self_attn",),
    )


ARCHITECTURES: dict[str, Architecture] = {
    "llama": llama(),
    "llama-blocks": llama(192, 320, 64, 1),
    "qwen3_moe": qwen3_moe(),
    "qwen3_moe-blocks": qwen3_moe(192, 160, 3),
    "mixtral": mixtral(),
    "deepseek_v3": deepseek_v3(),
    "deepseek_v3-blocks": deepseek_v3(192, 160, 3),
    "deepseek_v4": deepseek_v4(),
    "gpt_oss": gpt_oss(),
    "llama4": llama4(),
}
