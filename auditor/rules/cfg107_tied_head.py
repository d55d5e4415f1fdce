"""CFG107."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import EMBEDDINGS, HEADS, is_side
from auditor.audit import Depth
from auditor.checkpoint import CONFIG
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.jsonfile import Json, strings, table
from auditor.rule import CheckpointRule
from auditor.tensorref import TensorRef

_SAMPLE = 16 << 10  # bytes compared at each of three places
_GENERATIVE = ("ForCausalLM", "ForConditionalGeneration")


class TiedHead(CheckpointRule):
    """config.json and the files disagree on whether the output head shares the embedding's weights.

    ## What it checks
    `tie_word_embeddings` against what is stored.  Tied, and a head that is quantised or differs from the
    embedding (a few kilobytes of both are compared): an error or a warning; tied, and an equal copy of the
    embedding: info.  Explicitly untied, and no head in any shard of a generative model: an error.

    ## Why it matters
    A tied model throws the stored head away and uses the embedding; an untied one without a head gets random
    weights.

    ## What engines do
    transformers ties, or fills the missing head with random numbers and warns.  vLLM skips a stored head of a
    tied model or, in recent releases, compares it and unties; for several architectures it has no lm_head module
    at all and stops.  SGLang stops with KeyError 'lm_head.weight'.

    ## Fix
    A stored head that is quantised or differs: set `tie_word_embeddings` to false, *exact*, since no weight
    changes.  No head in an untied model: set it to true, a *guess*, since the head may simply be lost.

    ## References
    sglang#2935, vllm#52147, vllm#53170, vllm#42124
    """

    code, title, severity = "CFG107", "tie_word_embeddings contradicts the files", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding."""
        config = ctx.checkpoint.config
        if config is None or ctx.checkpoint.missing or ctx.checkpoint.unopened:
            return
        tied = ties(config)
        modules = {ref.name.rpartition(".")[0]: ref for ref in ctx.checkpoint.tensors.values()}
        heads = [m for m in modules if m.rpartition(".")[2] in HEADS and not is_side(m)]
        embedding = next((m for m in modules if m.rpartition(".")[2] in EMBEDDINGS and not is_side(m)), None)
        if True in tied and heads and embedding:
            yield from self._stored(ctx, heads[0], embedding)
        elif tied == {False} and not heads and embedding and ctx.layers and generative(config):
            message = f"tie_word_embeddings is false, but no shard holds an output head (embedding: {embedding})"
            note = "set tie_word_embeddings to true if the model's head is its embedding"
            yield self.file_finding(CONFIG, message, fix=Remedy(Safety.GUESS, note))

    def _stored(self, ctx: Context, head: str, embedding: str) -> Iterator[Finding]:
        tensors = ctx.checkpoint.tensors
        here, there = tensors.get(f"{head}.weight"), tensors.get(f"{embedding}.weight")
        fix = Remedy(Safety.EXACT, "set tie_word_embeddings to false")
        layer = next((layer for layer in ctx.layers if layer.module == head), None)
        if layer is not None:
            yield self.finding(layer.codes, "a quantised head is stored, but tie_word_embeddings is true", fix=fix)
        elif here is not None and there is not None:
            same = equal(ctx, here, there)
            if same is False:
                message = f"tie_word_embeddings is true, but the stored head differs from {there.name}"
                yield self.finding(here, message, fix=fix, severity=Severity.WARNING)
            else:
                what = "a copy of the embedding" if same else "not compared at this depth"
                message = f"tie_word_embeddings is true and a head is stored too: {what}"
                yield self.finding(here, message, severity=Severity.INFO)


def ties(config: Json) -> set[bool]:
    """What the configuration says, at the top and for its language model; other types say nothing."""
    parts = (table(config), table(config.get("text_config")), table(config.get("llm_config")))
    return {value for part in parts if isinstance(value := part.get("tie_word_embeddings"), bool)}


def generative(config: Json) -> bool:
    """Whether the first architecture has an output head over the vocabulary."""
    names = strings(config.get("architectures"))
    return bool(names) and names[0].endswith(_GENERATIVE)


def equal(ctx: Context, here: TensorRef, there: TensorRef) -> bool | None:
    """Whether two tensors hold the same bytes at three places; None when this depth reads no data."""
    if here.dtype != there.dtype or here.shape != there.shape:
        return False
    if ctx.depth < Depth.SCALARS:
        return None
    length = min(_SAMPLE, here.nbytes)
    places = {0, (here.nbytes - length) // 2, here.nbytes - length}
    return all(ctx.read(here, at, length) == ctx.read(there, at, length) for at in places)
