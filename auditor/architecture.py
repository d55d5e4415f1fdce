"""What names tell about modules: which are linear projections, which stand apart, and what an architecture loads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from auditor.context import Context
from auditor.formats.base import Format
from auditor.jsonfile import Json, table
from auditor.tensorref import TensorRef

# Projections that every common loader builds as quantisable linear layers.
CORE_LEAVES = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj",
    "w1", "w2", "w3", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "in_proj_qkvz", "in_proj_qkv",
    "in_proj_z", "query_key_value", "dense_h_to_4h", "dense_4h_to_h",
})  # fmt: skip
# Never quantised, or by hardly any loader, whatever a list says.
_NEVER = frozenset({
    "embed_tokens", "embeddings", "wte", "wpe", "embed", "embed_in", "tok_embeddings", "word_embeddings", "router",
    "gate", "wg", "shared_expert_gate", "conv1d", "norm", "classifier", "score", "lm_head", "embed_out", "output",
    "head", "weights_proj", "eh_proj", "e_score_correction_bias", "rotary_emb", "patch_embed", "embed_tokens_per_layer",
})  # fmt: skip
HEADS = frozenset({"lm_head", "embed_out", "head", "output", "output_layer", "lm_out"})
EMBEDDINGS = frozenset({
    "embed_tokens", "embeddings", "wte", "embed", "embed_in", "tok_embeddings", "word_embeddings", "token_embd",
})  # fmt: skip
# Parts that loaders build apart, often without the quantisation config: encoders of other modalities.
_SIDE = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|vit|image\w*|audio\w*|speech\w*|mm_\w*|multi_modal\w*|multimodal\w*|perceiver|"
    r"resampler|connector|aligner|encoder|sam_model|mlp1|talker|code2wav|token2wav)(?:\.|$)"
)
_MTP = re.compile(r"(?:^|\.)(?:mtp\w*|nextn\w*|eagle\w*|medusa\w*|draft\w*)(?:\.|$)")
_DIGITS = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")


class Linear(NamedTuple):
    """A weight that is stored unquantised.  ``core``: its leaf is a projection that every loader quantises."""

    module: str
    leaf: str
    core: bool
    ref: TensorRef


def generalised(name: str) -> str:
    """The name with layer and expert numbers replaced: model.layers.*.mlp.gate_proj."""
    return _DIGITS.sub("*", name)


def is_side(module: str, layers: int | None = None) -> bool:
    """Whether a module belongs to an encoder of another modality or predicts further tokens (MTP).

    ``layers``: num_hidden_layers; layers beyond it are MTP layers.
    """
    if _SIDE.search(module) or _MTP.search(module):
        return True
    number = layer_number(module)
    return layers is not None and number is not None and number >= layers


def layer_number(name: str) -> int | None:
    """The number of the decoder layer that a module or tensor lies in, None outside them."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def module_of(ref: TensorRef) -> str:
    """The module a loader knows a weight by: a fused 3-D tensor (experts.gate_up_proj) is one itself."""
    module, _, leaf = ref.name.rpartition(".")
    return module if leaf == "weight" else ref.name


def plain_linears(ctx: Context) -> Iterator[Linear]:
    """Every weight stored in a float dtype that is a linear projection by its name.

    A name counts when it is a core projection or when the same leaf is quantised elsewhere in the checkpoint.
    """
    quantised = {layer.leaf for layer in ctx.layers}
    for ref in ctx.recognised.plain:
        if ref.dtype not in ("BF16", "F16", "F32"):
            continue
        parent, _, last = ref.name.rpartition(".")
        if last == "weight" and len(ref.shape) == 2:
            module, leaf = parent, parent.rpartition(".")[2]
        elif len(ref.shape) == 3 and last in CORE_LEAVES and "experts" in parent:
            module, leaf = ref.name, last
        else:
            continue
        core = leaf in CORE_LEAVES
        if core or (leaf in quantised and leaf not in _NEVER):
            yield Linear(module, leaf, core, ref)


def hidden_layers(config: Json | None) -> int | None:
    """num_hidden_layers of the language model, None when the configuration does not say."""
    for part in (table(config), table(table(config).get("text_config"))):
        value = part.get("num_hidden_layers")
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20:
            return value
    return None


def model_types(config: Json | None) -> list[str]:
    """model_type of the whole model and of its language model, where they are strings."""
    parts = (table(config), table(table(config).get("text_config")))
    return [part["model_type"] for part in parts if isinstance(part.get("model_type"), str)]


@cache
def coarse(fmt: Format) -> str:
    """What a layout holds, as far as loaders that fuse layers care: nvfp4, nvfp4-32, mxfp4, mxfp8, fp8, integer.

    "" where it is not known.
    """
    if fmt.unaudited:
        return fmt.holds
    if fmt.is_fp4():
        mx = fmt.scale is not None and fmt.scale.name.startswith("e8m0")
        return "mxfp4" if mx else "nvfp4-32" if fmt.block == (1, 32) else "nvfp4"
    return "mxfp8" if fmt.block == (1, 32) else "fp8"


_W123 = frozenset({"w1", "w2", "w3"})
_GATE_UP = frozenset({"gate_proj", "up_proj", "down_proj"})
# model_type -> leaves of one expert, as transformers' checkpoint conversion and vLLM's loaders name them.
EXPERT_LEAVES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2", "phimoe", "lfm2_moe", "kimi_linear"), _W123),
    **dict.fromkeys(
        (
            "qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
            "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "olmoe", "hunyuan_v1_moe", "flex_olmo",
            "exaone_moe", "jamba",
        ),
        _GATE_UP,
    ),
    "nemotron_h": frozenset({"up_proj", "down_proj"}),
    # transformers loads the two fused ones; vLLM cuts these, and knows each expert by the other three.
    **dict.fromkeys(
        ("granitemoe", "granitemoeshared", "granitemoehybrid"), _W123 | {"input_linear", "output_linear"}
    ),
}  # fmt: skip
EXPERT_SPELLINGS = _W123 | _GATE_UP | {"gate_up_proj", "fc1", "fc2", "linear_fc1", "linear_fc2"}


def expert_leaves(types: Iterable[str]) -> tuple[str, frozenset[str]] | None:
    """(model_type, leaves of one expert) of the first architecture that is known here."""
    for name in types:
        base = name.removesuffix("_text")
        if base in EXPERT_LEAVES:
            return name, EXPERT_LEAVES[base]
    return None
