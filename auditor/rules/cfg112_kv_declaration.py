"""CFG112."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.rule import CheckpointRule


class KvDeclaration(CheckpointRule):
    """A quantised KV cache is declared without scales, or scales are stored without a declaration.

    ## What it checks
    The declared KV-cache algorithm against the k_scale and v_scale tensors in the files.

    ## Why it matters
    It is legal both ways.  A cache with a constant range ("cast" mode) and an NVFP4 cache write no scales: 1.0 is
    used.  Scales without a declaration serve only those who ask for an FP8 cache.

    ## What engines do
    vLLM uses 1.0 where no scale is stored, and ignores stored scales while the cache is not quantised.

    ## Fix
    Nothing is broken.

    ## References
    Model-Optimizer, KV cache configurations; vllm, BaseKVCacheMethod
    """

    code, title, severity = "CFG112", "KV cache declaration and scales differ", Severity.INFO
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding."""
        declared, stored = ctx.declared, ctx.recognised.kv
        if declared.kv_cache and not stored:
            message = f"{declared.file} declares a {declared.kv_cache} KV cache and no scale is stored: 1.0 is used"
            yield self.file_finding(declared.file, message)
        elif stored and declared.method and not declared.kv_cache:
            message = f"{len(stored)} KV-cache scales are stored and {declared.file} declares no quantised cache"
            yield self.finding(stored[0], message, count=len(stored), related=[ref.name for ref in stored[1:]])
