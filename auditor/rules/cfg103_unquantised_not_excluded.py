"""CFG103."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from auditor.architecture import HEADS, Linear, generalised, hidden_layers, is_side, plain_linears
from auditor.audit import Depth
from auditor.automaton import MAX_PATTERN
from auditor.context import Context
from auditor.declared import Declared
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.rule import CheckpointRule
from auditor.rules.cfg108_garbled_pattern import garbled

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
    Add every such module to the list that the method's loaders read: `ignore` or `exclude_modules` (modelopt),
    `ignore` (compressed-tensors), `exclude` (Quark), `modules_to_not_convert` or `ignored_layers` (fp8, mxfp8),
    `modules_to_not_convert` (mxfp4, fbgemm_fp8).  *Exact*: only the configuration changes.

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
        for linear in unlisted(ctx):
            kinds.setdefault(generalised(linear.module), []).append(linear)
        quantised = {generalised(layer.name) for layer in ctx.layers}
        layers = hidden_layers(ctx.checkpoint.config)
        for kind, members in kinds.items():
            severity = judge(declared, kind, members[0], quantised, all(is_side(m.module, layers) for m in members))
            if severity is None:
                continue
            first = members[0]
            to_name = nameable(declared, members)
            note = f"add {first.module!r} to the exclusions of {declared.file}"
            some = "" if len(members) == 1 else f" ({len(members)} layers: {kind})"
            yield self.finding(
                first.ref,
                f"stored as {first.ref.dtype}, but {declared.file} does not exclude {first.module}{some}",
                count=len(members),
                related=[member.ref.name for member in members[1:]],
                fix=Remedy(Safety.EXACT, note) if to_name else None,
                severity=severity,
                layer=first.module,
            )


def unlisted(ctx: Context, kind: str = "") -> Iterator[Linear]:
    """Every linear weight that is declared quantised, stored unquantised and on no list; of one kind, where named."""
    declared = ctx.declared
    for linear in (*plain_linears(ctx), *heads(ctx)):
        if kind and generalised(linear.module) != kind:
            continue
        if declared.quantises(linear.module):
            yield linear


def nameable(declared: Declared, members: Iterable[Linear]) -> list[str]:
    """The modules that can be put on the lists as they are called; none where a file has no list for them."""
    if not all(one.exclude_lists for one in declared.together):
        return []
    names = (member.module for member in members)
    return [n for n in names if not garbled(n) and not n.startswith("re:") and len(n) <= MAX_PATTERN]


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
