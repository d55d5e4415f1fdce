"""CFG101."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from auditor.agreement import contradiction
from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Activation, Algorithm, Declared, Family
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.formats.base import Role
from auditor.jsonfile import strings, table
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule

Edits = Mapping[tuple[str, ...], str | bool | None]
_NVFP4 = ("NVFP4", "NVFP4_STATIC", "W4A4_NVFP4")
_WEIGHT_ONLY = "W4A16_NVFP4"


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
    The configuration says what the file holds, for these layers alone: `quant_algo` W4A16_NVFP4, or
    `input_activations: null`, or a dynamic scheme for FP8.  *Exact*: no weight changes.  modelopt has no name for
    FP8, AWQ or SVD without stored scales.  To serve with quantised activations, calibrate again.

    ## References
    vllm#54189, vllm#54427, vllm#49715
    """

    code, title, severity = "CFG101", "declared activation scales are missing", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per declared algorithm, on the configuration file."""
        for algorithm, layers in lacking(ctx).items():
            message = (
                f"no activation scale in any of {len(layers)} layers, though {algorithm.name} is declared, "
                "which quantises activations with stored scales"
            )
            edits = changes(ctx.declared, layers)
            yield self.file_finding(
                ctx.declared.file,
                message,
                count=len(layers),
                related=[layer.codes.name for layer in layers],
                fix=Remedy(Safety.EXACT, in_words(edits)) if edits else None,
            )


def lacking(ctx: Context) -> dict[Algorithm, list[QuantizedLayer]]:
    """The layers of every declared algorithm that needs stored activation scales, where none of them has one."""
    if ctx.checkpoint.missing or ctx.checkpoint.unopened:
        return {}
    found: dict[Algorithm, list[QuantizedLayer]] = {}
    for layer in ctx.layers:
        algorithm = ctx.declared.algo_for(layer.name)
        if layer.format.unaudited or algorithm is None or algorithm.activation is not Activation.STATIC:
            continue
        if ctx.declared.exclusion(layer.name) is None and not contradiction(layer, algorithm, ctx.declared):
            found.setdefault(algorithm, []).append(layer)
    return {a: layers for a, layers in found.items() if not any(layer.get(Role.INPUT) for layer in layers)}


def changes(declared: Declared, layers: Sequence[QuantizedLayer]) -> Edits:
    """What a declaration has to say of these layers instead, by path in its object.

    Nothing where it says so already, and where the method has no name for what is stored.
    """
    static = [layer for layer in layers if declared.activation_for(layer.name) is Activation.STATIC]
    entries = list(dict.fromkeys(declared.entry_for(layer.name) for layer in static))
    algorithms = {algorithm for layer in static if (algorithm := declared.algo_for(layer.name))}
    fp4 = all(a.family is Family.NVFP4 for a in algorithms) and all(layer.format.is_fp4() for layer in static)
    if not static:
        return {}
    if declared.method == "modelopt":
        return _modelopt(declared, entries, static) if fp4 and all(a.name in _NVFP4 for a in algorithms) else {}
    if declared.method == "compressed-tensors":
        return _compressed_tensors(declared, entries, fp4)
    return {("activation_scheme",): "dynamic"} if declared.method in ("fp8", "deepseek_v4_fp8") else {}


def _modelopt(declared: Declared, entries: Sequence[str | None], layers: Sequence[QuantizedLayer]) -> Edits:
    """Groups repeat for other readers what the algorithm says: those that name other layers too stay."""
    edits: dict[tuple[str, ...], str | bool | None] = {
        ("quantized_layers", entry, "quant_algo") if entry is not None else ("quant_algo",): _WEIGHT_ONLY
        for entry in entries
    }
    named = {entry for entry in entries if entry is not None} | {layer.name for layer in layers}
    for key, group in table(declared.source.get("config_groups")).items():
        about = not declared.mixed or named.issuperset(strings(table(group).get("targets")) or ("",))
        if about and table(table(group).get("input_activations")):
            edits["config_groups", key, "input_activations"] = None
    return edits


def _compressed_tensors(declared: Declared, entries: Sequence[str | None], fp4: bool) -> Edits:
    groups = table(declared.source.get("config_groups"))
    keys = [entry for entry in entries if entry is not None]
    if not all(table(table(groups.get(key)).get("input_activations")) for key in keys):
        return {}  # a preset's name stands for the whole group
    paths = [("config_groups", key, "input_activations") for key in keys]
    return dict.fromkeys(paths, None) if fp4 else {(*path, "dynamic"): True for path in paths}


def in_words(edits: Edits) -> str:
    """The edits in one line: the first path of each value, and how many follow it."""
    paths: dict[str, list[str]] = {}
    for path, value in edits.items():
        paths.setdefault(json.dumps(value), []).append(".".join(path)[:200])
    return ", ".join(
        f"{first} becomes {value}" if not more else f"{first} and {len(more)} more become {value}"
        for value, (first, *more) in paths.items()
    )
