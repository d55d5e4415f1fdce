"""CFG103."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import HEADS, Linear, generalised, hidden_layers, is_side, plain_linears
from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Declared, Family
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.rule import CheckpointRule

_SKIP = (Family.PLAIN, Family.UNKNOWN, Family.INTEGER)
# Their loaders know by themselves what is never quantised, and published files list little or nothing.
_UNLISTED = ("fp8", "deepseek_v4_fp8", "mxfp8", "fbgemm_fp8")


class UnquantisedNotExcluded(CheckpointRule):
    """A linear weight is stored unquantised and the configuration does not say so.

    ## What it checks
    Weights in BF16, F16 or F32 whose name is that of a linear projection, or of a layer that is quantised
    elsewhere in the checkpoint, against the ignore or exclude list, matched as leniently as the most lenient
    loader does.  Embeddings, norms, routers and convolutions are never named.  Encoders of other modalities and
    MTP layers, which loaders build apart, are reported as info, layers of DeepSeek-like `fp8` files only when
    the same kind of layer is quantised elsewhere.

    ## Why it matters
    A loader builds a quantised layer for it: the scales it waits for never come.

    ## What engines do
    vLLM refuses the shape or the dtype, or runs with scales that were never loaded and answers with garbage;
    recent releases stop with "weight_scale was not fully loaded".  SGLang refuses.

    ## Fix
    Add the module to the list.  *Exact*: only the configuration changes.

    ## References
    vllm#38832, vllm#40252, vllm#49187, vllm#52501, vllm#57532, Model-Optimizer#2129
    """

    code, title, severity = "CFG103", "unquantised layer declared quantised", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per kind of layer (names with their numbers replaced)."""
        declared = ctx.declared
        if not ctx.layers or not declared.method:
            return
        kinds: dict[str, list[Linear]] = {}
        for linear in [*plain_linears(ctx), *heads(ctx)]:
            algorithm = declared.algo_for(linear.module)
            if algorithm is None or algorithm.family in _SKIP or declared.may_be_excluded(linear.module):
                continue
            kinds.setdefault(generalised(linear.module), []).append(linear)
        quantised = {generalised(layer.name) for layer in ctx.layers}
        layers = hidden_layers(ctx.checkpoint.config)
        for kind, members in kinds.items():
            severity = judge(declared, kind, members[0], quantised, all(is_side(m.module, layers) for m in members))
            if severity is None:
                continue
            first = members[0]
            some = "" if len(members) == 1 else f" ({len(members)} layers: {kind})"
            yield self.finding(
                first.ref,
                f"stored as {first.ref.dtype}, but {declared.file} does not exclude {first.module}{some}",
                count=len(members),
                related=[member.ref.name for member in members[1:]],
                fix=Remedy(Safety.EXACT, f"add {first.module!r} to the exclusions of {declared.file}"),
                severity=severity,
                layer=first.module,
            )


def heads(ctx: Context) -> Iterator[Linear]:
    """Output heads stored unquantised: modelopt's loaders quantise them like any other layer."""
    if ctx.declared.method != "modelopt" or ctx.declared.mixed:
        return
    for ref in ctx.recognised.plain:
        module, _, last = ref.name.rpartition(".")
        leaf = module.rpartition(".")[2]
        if last == "weight" and leaf in HEADS and len(ref.shape) == 2 and ref.dtype in ("BF16", "F16", "F32"):
            yield Linear(module, leaf, False, ref)


def judge(declared: Declared, kind: str, first: Linear, quantised: set[str], side: bool) -> Severity | None:
    """How bad it is that this kind of layer is on no list; None when it says nothing."""
    if side:
        return Severity.INFO
    if first.leaf in HEADS:
        return Severity.WARNING  # older servers never quantise the head
    if kind in quantised:
        return Severity.ERROR
    if declared.method in _UNLISTED:
        return None
    fused = len(first.ref.shape) > 2 and declared.method != "modelopt"  # a parameter, which Linear does not name
    return Severity.ERROR if (first.core and not fused) or declared.mixed else Severity.WARNING
