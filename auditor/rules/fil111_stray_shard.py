"""FIL111."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.checkpoint import SINGLE
from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Severity


class StrayShard(FileRule):
    """A safetensors file in the folder belongs to no index.

    ## What it checks
    Every `*.safetensors` file is named by an index of the folder, or is the only one.  `consolidated*` (the second
    copy that some publishers add in their own layout) is information, anything else a warning.

    ## Why it matters
    It is left over from an earlier export, or it was forgotten: some loaders read it and others do not.

    ## What engines do
    transformers takes `model.safetensors` before any index: a stale one hides the shards.  vLLM and SGLang drop
    files that the index does not name, and read all of them where there is no index.

    ## Fix
    Where its tensors belong to the model: rebuild the index.  Otherwise remove the file.

    ## References
    MO#2427, https://github.com/Blaizzy/mlx-vlm/pull/1464
    """

    code, title, severity = "FIL111", "stray shard", Severity.WARNING
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each stray file."""
        checkpoint = ctx.checkpoint
        for name in checkpoint.stray:
            if name in checkpoint.adopted:
                continue  # the model's own: FIL106, FIL107, FIL110
            shard = checkpoint.shards.get(name)
            refs = shard.header.tensors if shard else []
            copies = sum(checkpoint.tensors[ref.name] is not ref for ref in refs)
            index = checkpoint.index.file if checkpoint.index else SINGLE
            message = f"{len(refs)} tensors, {copies} of them also elsewhere; {index} does not name this file"
            if checkpoint.index is None:
                message = f"{len(refs)} tensors, {copies} of them also elsewhere; no index, and {index} is there"
            elif name == SINGLE:
                message += ", and transformers reads it instead of the shards"
            severity = Severity.INFO if name.startswith("consolidated") else None
            yield self.file_finding(name, message, severity=severity)
