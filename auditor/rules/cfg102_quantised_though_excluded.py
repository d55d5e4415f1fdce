"""CFG102."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import generalised
from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule


class QuantisedThoughExcluded(CheckpointRule):
    """A layer is stored quantised and the configuration says it is not.

    ## What it checks
    Every quantised layer against the ignore or exclude list, matched as strictly as the strictest loader does;
    against the table of a MIXED_PRECISION file; against the named targets of compressed-tensors.

    ## Why it matters
    A loader believes the list and builds an unquantised layer, which has no place for scales.

    ## What engines do
    vLLM stops: "There is no module or parameter named 'lm_head.input_scale'".  TensorRT-LLM fails on the missing
    attribute.  transformers ignores the scales and reads packed codes as weights, or refuses the shape.

    ## Fix
    Take the entry off the list, with every other that excludes the layer, and name the unquantised modules that
    they covered.  *Exact*: only the configuration changes.  Where no table names the layer, its algorithm is not
    known, and nothing is written.

    ## References
    vllm#44081, vllm#45102, vllm#45132, TensorRT-LLM#16196
    """

    code, title, severity = "CFG102", "quantised layer declared unquantised", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per entry that is wrong, or per kind of layer that no table names."""
        declared = ctx.declared
        if not declared.method:
            return
        wrong: dict[tuple[str, str], list[QuantizedLayer]] = {}
        fixable = {key for key in declared.exclude_keys if isinstance(declared.source.get(key), list)}
        for layer in ctx.layers:
            pattern = declared.exclusion(layer.name)
            if pattern is not None:
                wrong.setdefault(("listed", pattern.text), []).append(layer)
            elif declared.algo_for(layer.name) is None and (declared.algorithm or declared.groups or declared.layers):
                wrong.setdefault(("unnamed", generalised(layer.name)), []).append(layer)
        for (kind, what), layers in wrong.items():
            some = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
            if kind == "listed":
                message = (
                    f"stored as {layers[0].format.name}, but {declared.file} excludes it by {what[:200]!r} ({some})"
                )
                note = f"take {what[:200]!r} off the list of {declared.file}, and name the unquantised modules alone"
                pattern = declared.exclusion(layers[0].name)
                fix = Remedy(Safety.EXACT, note) if pattern and pattern.key in fixable else None
            else:
                message = (
                    f"stored as {layers[0].format.name}, but {declared.file} declares no algorithm for it ({some})"
                )
                fix = None
            yield self.finding(
                layers[0].codes,
                message,
                count=len(layers),
                related=[layer.codes.name for layer in layers[1:]],
                fix=fix,
                layer=layers[0].name,
            )
