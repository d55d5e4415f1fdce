"""CFG104."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import coarse
from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Algorithm, Declared, Family
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule

_HOLDS = {
    Family.NVFP4: "nvfp4",
    Family.NVFP4_32: "nvfp4-32",
    Family.MXFP4: "mxfp4",
    Family.MXFP8: "mxfp8",
    Family.FP8: "fp8",
    Family.FP8_CHANNEL: "fp8",
    Family.FP8_BLOCK: "fp8",
    Family.INTEGER: "integer",
}


class LayoutContradicts(CheckpointRule):
    """A layer is stored in another format than the configuration declares.

    ## What it checks
    What the tensors of each layer are (NVFP4, MXFP4, MXFP8, FP8 per tensor, channel or block, an integer format,
    the size of a block) against the algorithm that is declared for it.  A single scale is right for block FP8
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
            if algorithm is None or algorithm.family not in _HOLDS or ctx.declared.exclusion(layer.name):
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


def contradiction(layer: QuantizedLayer, algorithm: Algorithm, declared: Declared) -> tuple[str, Severity] | None:
    """(what is stored, severity) when it is not what the algorithm leaves on disk, else None."""
    holds, wanted = coarse(layer.format), _HOLDS[algorithm.family]
    if holds != wanted:
        if (wanted, holds) == ("nvfp4", "nvfp4-32"):
            return None  # half of the scales are missing: FMT105
        return f"stored as {layer.format.name_for(declared.method)}", Severity.ERROR
    if holds == "fp8":
        return _fp8(layer, algorithm, declared)
    size = {"nvfp4": 16, "nvfp4-32": 32, "mxfp4": 32, "mxfp8": 32}.get(holds)
    if size and algorithm.group_size not in (None, size):
        return f"stored with one scale per {size} weights, not {algorithm.group_size}", Severity.ERROR
    return None


def _fp8(layer: QuantizedLayer, algorithm: Algorithm, declared: Declared) -> tuple[str, Severity] | None:
    rows, columns = layer.dims()
    if layer.scales.is_scalar:
        stored, fits = "one scale per tensor", algorithm.family is Family.FP8
        if algorithm.family is Family.FP8_CHANNEL:
            fits = rows == 1
        elif algorithm.family is Family.FP8_BLOCK:
            height, width = algorithm.block or (128, 128)
            fits = rows <= height and columns <= width
    elif layer.format.block == (1, 0):
        stored, fits = "one scale per channel", algorithm.family is Family.FP8_CHANNEL or declared.method == "fp8"
    else:
        stored, fits = "one scale per block", algorithm.family is Family.FP8_BLOCK
    return None if fits else (f"stored with {stored}", Severity.ERROR)
