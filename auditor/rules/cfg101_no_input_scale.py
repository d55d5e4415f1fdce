"""CFG101."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.agreement import contradiction
from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Activation, Algorithm, Declared, Family
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule


class NoInputScale(CheckpointRule):
    """Static activation quantisation is declared and no activation scale is stored.

    ## What it checks
    For each declared algorithm that needs a stored activation scale: whether any of its layers has one
    (input_scale, input_global_scale, input_scale_2).  NVFP4 needs one even where compressed-tensors declares
    `dynamic: "local"`, which means the block scales only.  W4A16, the MX formats and dynamic FP8 need none.

    ## Why it matters
    The model was calibrated for its weights alone, or no sample ever ran through it, and the file promises
    something else.

    ## What engines do
    vLLM allocates the scales and multiplies with what was in that memory: on some machines every expert yields
    zero and the model repeats one token, on others it happens to work.  SGLang does the same.  TensorRT-LLM
    quantises activations dynamically.

    ## Fix
    The configuration says what the file holds: `quant_algo` W4A16_NVFP4, or `input_activations: null`, or a
    dynamic scheme for FP8.  *Exact*: no weight changes.  To serve with quantised activations, calibrate again.

    ## References
    vllm#54189, vllm#54427, vllm#49715
    """

    code, title, severity = "CFG101", "declared activation scales are missing", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per declared algorithm, on the configuration file."""
        if ctx.checkpoint.missing or ctx.checkpoint.unopened:
            return
        by_algorithm: dict[Algorithm, list[QuantizedLayer]] = {}
        for layer in ctx.layers:
            algorithm = ctx.declared.algo_for(layer.name)
            if layer.format.unaudited or algorithm is None or algorithm.activation is not Activation.STATIC:
                continue
            if ctx.declared.exclusion(layer.name) is None and not contradiction(layer, algorithm, ctx.declared):
                by_algorithm.setdefault(algorithm, []).append(layer)
        for algorithm, layers in by_algorithm.items():
            if any(layer.get(Role.INPUT) for layer in layers):
                continue
            message = (
                f"no activation scale in any of {len(layers)} layers, though {algorithm.name} is declared, "
                "which quantises activations with stored scales"
            )
            yield self.file_finding(
                ctx.declared.file, message, count=len(layers), fix=remedy(ctx.declared, algorithm, layers)
            )


def remedy(declared: Declared, algorithm: Algorithm, layers: list[QuantizedLayer]) -> Remedy | None:
    """The edit of the configuration that says what is stored, None where the method has no name for it."""
    is_fp4 = algorithm.family is Family.NVFP4 and all(layer.format.is_fp4() for layer in layers)
    note = ""
    if declared.method == "modelopt" and is_fp4 and algorithm.name in ("NVFP4", "NVFP4_STATIC", "W4A4_NVFP4"):
        note = "declare quant_algo W4A16_NVFP4 and no input_activations"
    elif declared.method == "compressed-tensors":
        note = "set input_activations to null" if is_fp4 else 'set "dynamic": true in input_activations'
    elif declared.method in ("fp8", "deepseek_v4_fp8"):
        note = "set activation_scheme to dynamic"
    return Remedy(Safety.EXACT, note) if note else None
