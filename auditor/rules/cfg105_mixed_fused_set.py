"""CFG105."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import coarse, plain_linears
from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.groups import FUSED_SETS
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule
from auditor.shapes import misfit
from auditor.tensorref import TensorRef

# Fused by every server; the other sets by some.
_CERTAIN = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


class MixedFusedSet(CheckpointRule):
    """Layers that servers fuse into one matrix are stored in different formats.

    ## What it checks
    For q/k/v, gate/up, w1/w3 and the other sets that servers fuse: whether all members that are there hold the
    same kind of numbers (NVFP4, MXFP4, MXFP8, FP8, integers, unquantised).

    ## Why it matters
    A fused matrix has one format.

    ## What engines do
    vLLM stops: "Detected some but not all shards of ... are quantized" or "requires all to use the same scheme".
    SGLang and TensorRT-LLM refuse too.  transformers, which fuses only experts, loads dense layers.

    ## Fix
    Requantise the odd member from the source checkpoint.

    ## References
    vllm#11790, vllm#9595
    """

    code, title, severity = "CFG105", "formats differ inside a fused set", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per set, on the first member that is not like the majority."""
        if not ctx.layers:
            return
        parents: dict[str, dict[str, tuple[str, TensorRef]]] = {}
        for layer in ctx.layers:
            if misfit(layer, ctx.declared):  # the block size tells two formats apart: FMT105 says what is wrong
                continue
            _place(parents, layer.name, kind_of(layer), layer.codes)
        for linear in plain_linears(ctx):
            _place(parents, linear.module, linear.ref.dtype, linear.ref)
        for parent, children in parents.items():
            told: set[str] = set()
            for leaves in FUSED_SETS:
                members = {leaf: children[leaf] for leaf in leaves if leaf in children}
                kinds = [kind for kind, _ in members.values()]
                if len(set(kinds)) < 2 or told.intersection(members):
                    continue
                told.update(members)
                usual = max(kinds, key=kinds.count)
                odd = next(leaf for leaf, (kind, _) in members.items() if kind != usual)
                what = ", ".join(f"{leaf} {kind}" for leaf, (kind, _) in members.items())
                yield self.finding(
                    members[odd][1],
                    f"fused set {'/'.join(members)}: {what}",
                    related=[ref.name for leaf, (_, ref) in members.items() if leaf != odd],
                    severity=Severity.ERROR if leaves in _CERTAIN else Severity.WARNING,
                    layer=f"{parent}.{odd}" if parent else odd,
                )


def kind_of(layer: QuantizedLayer) -> str:
    """What the layer holds, for messages: NVFP4, FP8, ...; NVFP4 with half of its scales is NVFP4 (FMT105, CFG104)."""
    holds = coarse(layer.format)
    return {"integer": layer.format.name, "nvfp4-32": "NVFP4"}.get(holds, holds.upper())


def _place(parents: dict[str, dict[str, tuple[str, TensorRef]]], name: str, kind: str, ref: TensorRef) -> None:
    parent, _, leaf = name.rpartition(".")
    parents.setdefault(parent, {})[leaf] = (kind, ref)
