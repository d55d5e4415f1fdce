"""KVC103."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.jsonfile import table
from auditor.rule import CheckpointRule


class SharedKeyValue(CheckpointRule):
    """Keys and values share one projection, and its scales are stored for the keys alone.

    ## What it checks
    Where the configuration says attention_k_eq_v: quantised `k_proj` layers whose attention module has no
    `v_proj` tensor at all.

    ## Why it matters
    A loader that fuses q, k and v needs scales for v.  It makes the missing weight from k_proj's, and may forget
    the scales.

    ## What engines do
    TensorRT-LLM up to 1.3.0rc22 ends with KeyError 'v' in its fused loader; later ones copy k_proj's scales.
    Servers that know the architecture read the keys' tensors twice.

    ## Fix
    Copy k_proj's tensors to v_proj, which needs a rewritten shard: *exact*.

    ## References
    TensorRT-LLM#16867, TensorRT-LLM#16797
    """

    code, title, severity = "KVC103", "no scales for values that share the keys' weight", Severity.WARNING
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per attention module, on the keys' codes."""
        config = ctx.checkpoint.config or {}
        if True not in (config.get("attention_k_eq_v"), table(config.get("text_config")).get("attention_k_eq_v")):
            return
        parents = {name.rpartition(".v_proj.")[0] for name in ctx.checkpoint.tensors if ".v_proj." in name}
        for layer in ctx.layers:
            parent = layer.name.removesuffix(".k_proj")
            if parent != layer.name and parent not in parents:
                fix = Remedy(Safety.EXACT, "copy k_proj's tensors to v_proj; the shard is rewritten")
                message = "attention_k_eq_v is set, and v_proj has neither weight nor scales"
                yield self.finding(layer.codes, message, fix=fix, layer=layer.name)
