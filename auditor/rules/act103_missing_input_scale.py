"""ACT103."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.audit import Depth
from auditor.context import Context
from auditor.declaration import Activation
from auditor.finding import Finding, Remedy, Severity
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.peers import alike, remedy
from auditor.rule import CheckpointRule
from auditor.tensorref import TensorRef


class MissingInputScale(CheckpointRule):
    """An activation scale is missing though the layer's peers have one.

    ## What it checks
    Among the experts of one layer and projection, within each fused set, and among all layers whose declared
    algorithm stores activation scales: some members have one and some have none.

    ## Why it matters
    Loaders allocate one scale per expert and fill in what the file has.  What it lacks keeps whatever was in
    that memory.

    ## What engines do
    vLLM serves uninitialised memory; TensorRT-LLM takes a missing scale as dynamic quantisation; others refuse
    the checkpoint.

    ## Fix
    The largest scale of the fused set, which is what a sound export has, else of the peers: *bounded* when at
    least half of the set that is used are plausible, else a *guess*.  Without a plausible one `--policy`
    decides, a *guess*: `min-positive` writes 1e-8, `floor=VALUE` the value (both as divisors where the layout
    stores those).  The shard is rewritten.  Left alone where a tensor of that name exists, in another dtype.

    ## References
    vllm#45212, vllm#45320, vllm#54444
    """

    code, title, severity = "ACT103", "missing activation scale", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per layer that lacks what its peers have, on its codes."""
        seen: set[str] = set()
        sets: list[Sequence[QuantizedLayer]] = list({id(peers): peers for peers in ctx.peers.values()}.values())
        sets += [group.members for group in ctx.groups]
        for members in sets:
            yield from self._compare(members, ctx, seen)
        for algorithm, members in _declared_static(ctx).items():
            have = sum(layer.input_scale is not None for layer in members)
            for layer in members:
                if have and layer.input_scale is None and layer.name not in seen:
                    message = f"no activation scale, though {have} of {len(members)} layers of {algorithm} have one"
                    yield self.finding(layer.codes, message, fix=_remedy(layer, ctx), layer=layer.name)

    def _compare(self, members: Sequence[QuantizedLayer], ctx: Context, seen: set[str]) -> Iterator[Finding]:
        comparable = [m for m in members if m.format.is_fp4() or m.input_scale is not None]
        have = [m for m in comparable if m.input_scale is not None]
        lack = [m for m in comparable if m.input_scale is None and m.format.is_fp4()]
        if not have or not lack or any(m.format.scale is not have[0].format.scale for m in lack):
            return
        suffix = have[0].input_scale.name.rpartition(".")[2] if have[0].input_scale else "input_scale"
        for layer in lack:
            if layer.name in seen:
                continue
            seen.add(layer.name)
            message = f"no {suffix}, though {len(have)} of {len(comparable)} members of its set have one"
            yield self.finding(layer.codes, message, fix=_remedy(layer, ctx), layer=layer.name)


def example(layer: QuantizedLayer, ctx: Context) -> TensorRef | None:
    """An activation scale such as the layer lacks: of its fused set, of its peers, or of any layer of its layout."""
    group = ctx.fused.get(layer.name)
    company = (*(group.members if group else ()), *ctx.peers.get(layer.name, ()), *ctx.layers)
    found = (m.input_scale for m in company if m.input_scale is not None and alike(m, layer))
    return next((ref for ref in found if ref.size == 1), None)


def name_of(layer: QuantizedLayer, model: TensorRef, ctx: Context) -> str:
    """What the layer's own would be called, after that of another layer."""
    other = ctx.recognised.roles[model.name][0].format
    stem = layer.codes.name.removesuffix(layer.format.parts[Role.CODES].suffix)
    return stem + other.parts[Role.INPUT].suffix


def _remedy(layer: QuantizedLayer, ctx: Context) -> Remedy | None:
    model = example(layer, ctx)
    if model is None or name_of(layer, model, ctx) in ctx.checkpoint.tensors:
        return None
    return remedy(layer, model.dtype, ctx, "min-positive or floor=VALUE")


def _declared_static(ctx: Context) -> dict[str, list[QuantizedLayer]]:
    """The layers that are declared to have a stored activation scale, by the algorithm's name."""
    found: dict[str, list[QuantizedLayer]] = {}
    for layer in ctx.layers:
        algorithm = ctx.declared.algo_for(layer.name)
        if layer.format.unaudited or algorithm is None or algorithm.activation is not Activation.STATIC:
            continue
        found.setdefault(algorithm.name, []).append(layer)  # one that is excluded by mistake, too (CFG102)
    return found
