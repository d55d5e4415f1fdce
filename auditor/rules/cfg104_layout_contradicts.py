"""CFG104."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.agreement import contradiction
from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule


class LayoutContradicts(CheckpointRule):
    """A layer is stored in another format than the configuration declares.

    ## What it checks
    What the tensors of each layer are (NVFP4, MXFP4, MXFP8, FP8 per tensor, channel or block, an integer format,
    the size of its blocks) against the algorithm that is declared for it.  A single scale is right for block FP8
    when the whole weight fits into one block.

    ## Why it matters
    Each algorithm has its own tensor names, dtypes and shapes.  Where two of them look alike, as MXFP8's scale
    bytes and FP8's scales do, the numbers are wrong without a word.

    ## What engines do
    vLLM, SGLang and TensorRT-LLM allocate by the declaration and refuse shapes or names that differ.

    ## Fix
    Declare what is stored.  The rule does not guess which of the two was meant.

    ## References
    Model-Optimizer#868
    """

    code, title, severity = "CFG104", "format other than declared", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per declared algorithm and contradiction."""
        wrong: dict[tuple[str, str, str], list[QuantizedLayer]] = {}
        severity: dict[tuple[str, str, str], Severity] = {}
        for layer in ctx.layers:
            algorithm = ctx.declared.algo_for(layer.name)
            if algorithm is None or ctx.declared.exclusion(layer.name):
                continue
            verdict = contradiction(layer, algorithm, ctx.declared)
            if verdict is not None:
                key = (algorithm.name, layer.format.name, verdict[0])
                wrong.setdefault(key, []).append(layer)
                severity[key] = verdict[1]
        for key, layers in wrong.items():
            some = "" if len(layers) == 1 else f" ({len(layers)} layers)"
            yield self.finding(
                layers[0].codes,
                f"{key[2]}, but {ctx.declared.file} declares {key[0]}{some}",
                count=len(layers),
                related=[layer.codes.name for layer in layers[1:]],
                severity=severity[key],
                layer=layers[0].name,
            )
