"""ACT105."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.peers import PLAUSIBLE_AMAX, amax_of, near, plausible, remedy, typical
from auditor.rule import CheckpointRule
from auditor.scalars import faulty

# Their inputs are an expert's own hidden states, not the layer's: a few experts' are larger by orders of magnitude.
_INNER = frozenset({"down_proj", "w2", "fc2", "linear_fc2"})


class UninitialisedInputScale(CheckpointRule):
    """An activation scale is not a number that calibration gives: it is uninitialised memory.

    ## What it checks
    Scales that stand for an activation amax outside 1e-6 to 1e6, or more than 1000 times away from the median
    of the same projection's plausible peers (a warning for down projections: their inputs are an expert's own,
    and a few experts' are larger by orders of magnitude).  Where two or more experts of a projection are so (or
    zero, negative, NaN: ACT101), and at least one for every four sound ones, the plausible-looking peers are
    named as suspect, as information: chance writes plausible numbers, too.

    ## Why it matters
    compressed-tensors creates the scale with torch.empty.  Experts that were never routed keep what was in
    that memory: of 104 scales in one export 39 were negative, 10 zero, 10 subnormal, the rest between 1e-45
    and 1e34.  Servers take the extreme value over a layer's experts, so one expert breaks all of them.

    ## What engines do
    They use it: activations clip to nothing, or underflow to zero.

    ## Fix
    By the policies of ACT101: the largest scale (smallest divisor) of the plausible peers, *bounded* when at least
    half of them are plausible, else a *guess*.

    ## References
    llm-compressor with moe_calibrate_all_experts=False
    """

    code, title, severity, needs = "ACT105", "implausible activation scale", Severity.ERROR, Depth.SCALARS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per implausible scale, and one for the suspects of a set."""
        for layer in ctx.layers:
            peers = ctx.peers.get(layer.name, (layer,))
            if peers[0] is layer:  # a set is looked at once, with its first member
                yield from self._set(peers, ctx)

    def _set(self, peers: Sequence[QuantizedLayer], ctx: Context) -> Iterator[Finding]:
        usual = typical(peers, ctx)
        broken, good = 0, []
        for layer in peers:
            ref, values = layer.input_scale, ctx.values(layer.input_scale)
            if ref is None or values is None or layer.format.unaudited:
                continue
            odd = [i for i, v in enumerate(values) if not faulty(v) and _odd(layer, v, usual)]
            unusable = sum(map(faulty, values))
            broken += unusable + len(odd)
            if odd:
                absurd = not all(plausible(layer, values[i]) for i in odd)
                yield self.finding(
                    ref,
                    _message(layer, [values[i] for i in odd], usual),
                    count=len(odd),
                    places=ctx.places(ref, odd),
                    severity=Severity.ERROR if layer.leaf not in _INNER or absurd else Severity.WARNING,
                    fix=remedy(layer, ref.dtype, ctx),
                    layer=layer.name,
                )
            elif not unusable:
                good.append(layer)
        if good and broken > 1 and broken >= len(good) // 4:
            yield self._suspects(good, broken)

    def _suspects(self, good: Sequence[QuantizedLayer], broken: int) -> Finding:
        refs = [layer.input_scale for layer in good if layer.input_scale is not None]
        message = f"{len(refs)} scales look plausible, but {broken} of their peers are not calibrated: suspect, too"
        return self.finding(
            refs[0],
            message,
            count=len(refs),
            related=[ref.name for ref in refs[1:]],
            severity=Severity.INFO,
            layer=good[0].name,
        )


def _odd(layer: QuantizedLayer, value: float, usual: float | None) -> bool:
    """Whether a usable scale is implausible, by itself or beside its peers' median amax."""
    return not plausible(layer, value) or (usual is not None and not near(amax_of(layer, value), usual))


def _message(layer: QuantizedLayer, values: Sequence[float], usual: float | None) -> str:
    amax = amax_of(layer, values[0])
    low, high = PLAUSIBLE_AMAX
    far = usual is not None and not near(amax, usual)
    why = f"its peers' median is {usual:.4g}" if far else f"outside {low:g} to {high:g}"
    more = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
    return f"{values[0]:.6g}{more} stands for an activation amax of {amax:.4g}: {why}; uninitialised memory?"
