"""CFG114."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.rule import CheckpointRule


class UnusableDeclaration(CheckpointRule):
    """A value in the quantisation config is not what loaders can read.

    ## What it checks
    Types and values of the keys that loaders read: quant_method, quant_algo, config_groups, group_size,
    weight_block_size, activation_scheme, the ignore and exclude lists, quantized_layers.

    ## Why it matters
    Loaders stop, or skip the key and go on with a default.

    ## What engines do
    vLLM stops: "Missing 'quant_algo' in quantization config", "exclude_modules must be a list", "group_size must
    be an integer".  compressed-tensors refuses the object.  An algorithm or method that no loader is known to
    read is a warning: it may be newer than this tool.

    ## Fix
    Write the value that the exporter documents.

    ## References
    vLLM, modelopt.py; compressed-tensors, quant_config.py
    """

    code, title, severity = "CFG114", "unusable quantisation config", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per key."""
        others = ctx.declared.other.problems if ctx.declared.other else ()
        for problem in (*ctx.declared.problems, *others):
            severity = Severity.ERROR if problem.fatal else Severity.WARNING
            yield self.file_finding(problem.file, f"{problem.key[:200]} {problem.message}", severity=severity)
