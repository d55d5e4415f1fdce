"""CFG115."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.architecture import plain_linears
from auditor.audit import Depth
from auditor.checkpoint import CONFIG
from auditor.context import Context
from auditor.declared import Family
from auditor.finding import Finding, Severity
from auditor.layer import CODE_DTYPES
from auditor.rule import CheckpointRule


class NothingDeclared(CheckpointRule):
    """The files are quantised and no configuration says so, or the other way round.

    ## What it checks
    Quantised layers beside a config.json without quantization_config (and without hf_quant_config.json); a
    declaration of NVFP4, MXFP4 or FP8 weights beside files in which no tensor is quantised.

    ## Why it matters
    Nothing tells a loader how to read the codes, or it waits for scales that never come.

    ## What engines do
    transformers and vLLM load codes as if they were weights, or refuse the dtype and the unknown scale tensors.

    ## Fix
    Restore the exporter's quantization_config, or remove it from an unquantised model.

    ## References
    vllm#38832
    """

    code, title, severity = "CFG115", "quantisation not declared, or not there", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding, on the configuration file."""
        checkpoint, declared = ctx.checkpoint, ctx.declared
        if ctx.layers and not declared.method and checkpoint.config is not None and not declared.problems:
            if "hf_quant_config.json" not in checkpoint.config_problems:
                message = f"{len(ctx.layers)} layers are quantised, and nothing declares how"
                yield self.file_finding(CONFIG, message, count=len(ctx.layers))
            return
        families = declared.families - {Family.PLAIN, Family.UNKNOWN, Family.INTEGER}
        if not families or ctx.layers or checkpoint.missing or checkpoint.unopened:
            return
        if any(ref.dtype in CODE_DTYPES for ref in checkpoint.tensors.values()):
            return
        plain = [linear.ref.name for linear in plain_linears(ctx)]
        if plain:
            what = ", ".join(sorted(family.value for family in families))
            message = f"declares {what}, but no tensor is quantised ({len(plain)} linear weights are not)"
            yield self.file_finding(declared.file, message, count=len(plain))
