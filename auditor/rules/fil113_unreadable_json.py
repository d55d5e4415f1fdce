"""FIL113."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Severity


class UnreadableJson(FileRule):
    """An index or a configuration file cannot be read.

    ## What it checks
    `*.safetensors.index.json`, `config.json` and `hf_quant_config.json`, where they exist: a regular file of sane
    size, UTF-8, one JSON object, no key twice, no half of a surrogate pair; an index has a weight_map.

    ## Why it matters
    Without the index shards cannot be joined; without the configuration a loader does not know that the weights
    are quantised.

    ## What engines do
    All refuse invalid JSON.  Python's parser lets the last of two equal keys win without a word.

    ## Fix
    An index: rebuild it from the shards' headers.  A configuration: export it again.

    ## References
    https://www.rfc-editor.org/rfc/rfc8259
    """

    code, title, severity = "FIL113", "unreadable index or configuration", Severity.ERROR

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each file."""
        checkpoint = ctx.checkpoint
        for index in [checkpoint.index, *checkpoint.other_indices]:
            if index is not None and index.problem:
                yield self.file_finding(index.file, index.problem)
        for name, problem in checkpoint.config_problems.items():
            yield self.file_finding(name, problem)
