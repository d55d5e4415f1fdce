"""ACT103."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.audit import Depth
from auditor.context import Context
from auditor.declaration import Activation
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.peers import remedy
from auditor.rule import CheckpointRule


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
    The peers' largest scale, which needs a rewritten shard: *bounded* when at least half of the peers are
    plausible, refused when there is no peer.

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
                    yield self.finding(layer.codes, message, fix=remedy(layer, (), ctx), layer=layer.name)

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
            fix = remedy(layer, have, ctx)
            yield self.finding(layer.codes, message, fix=fix, layer=layer.name)


def _declared_static(ctx: Context) -> dict[str, list[QuantizedLayer]]:
    """The layers that are declared to have a stored activation scale, by the algorithm's name."""
    found: dict[str, list[QuantizedLayer]] = {}
    for layer in ctx.layers:
        algorithm = ctx.declared.algo_for(layer.name)
        if layer.format.unaudited or algorithm is None or algorithm.activation is not Activation.STATIC:
            continue
        if ctx.declared.exclusion(layer.name) is None:
            found.setdefault(algorithm.name, []).append(layer)
    return found
