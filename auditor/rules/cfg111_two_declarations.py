"""CFG111."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import plain_linears
from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Declared
from auditor.finding import Finding, Severity
from auditor.rule import CheckpointRule


class TwoDeclarations(CheckpointRule):
    """config.json and hf_quant_config.json describe the quantisation differently.

    ## What it checks
    Algorithm, group size, KV cache, and which of the stored layers each file excludes.  Lists that are spelled
    differently and exclude the same layers are the same.  Where config.json declares another method than modelopt,
    the other file was left by a conversion: info.

    ## Why it matters
    Which of the two is right depends on who reads.

    ## What engines do
    transformers, vLLM and SGLang read config.json first; TensorRT-LLM reads hf_quant_config.json first, and so do
    old releases of the others.

    ## Fix
    Delete or rewrite hf_quant_config.json.

    ## References
    Model-Optimizer, convert_hf_config.py; TensorRT-LLM, model_config.py
    """

    code, title, severity = "CFG111", "two declarations that differ", Severity.WARNING
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding, on hf_quant_config.json."""
        first, second = ctx.declared, ctx.declared.other
        if second is None:
            return
        if first.method != second.method:
            message = f"left from before a conversion: config.json declares {first.method}, this file {second.method}"
            yield self.file_finding(second.file, message, severity=Severity.INFO)
            return
        differences = [*_algorithms(first, second), *_exclusions(ctx, first, second)]
        if differences:
            yield self.file_finding(second.file, "; ".join(differences), count=len(differences))


def _algorithms(first: Declared, second: Declared) -> Iterator[str]:
    for what, one, other in (
        ("algorithm", _name(first), _name(second)),
        ("KV cache", first.kv_cache, second.kv_cache),
        ("group size", _size(first), _size(second)),
    ):
        if one != other and not (what == "group size" and "" in (one, other)):
            yield f"{what}: {one or 'none'} in {first.file}, {other or 'none'} here"
    if first.layers and second.layers and dict(first.layers) != dict(second.layers):
        differ = set(first.layers) ^ set(second.layers)
        differ |= {k for k in set(first.layers) & set(second.layers) if first.layers[k] != second.layers[k]}
        yield f"quantized_layers: {len(differ)} entries differ, the first is {min(differ)[:200]!r}"


def _name(declared: Declared) -> str:
    if declared.mixed:
        return "MIXED_PRECISION"
    return declared.algorithm.name if declared.algorithm else ""


def _size(declared: Declared) -> str:
    size = declared.algorithm.group_size if declared.algorithm else None
    return str(size) if size else ""


def _exclusions(ctx: Context, first: Declared, second: Declared) -> Iterator[str]:
    if {pattern.mended for pattern in first.exclude} == {pattern.mended for pattern in second.exclude}:
        return
    modules = [layer.name for layer in ctx.layers] + [linear.module for linear in plain_linears(ctx)]
    differ = [m for m in modules if (first.exclusion(m) is None) != (second.exclusion(m) is None)]
    if differ:
        where = second.file if first.exclusion(differ[0]) is None else first.file
        yield f"exclusions: {len(differ)} layers differ, {differ[0]} is excluded in {where} alone"
