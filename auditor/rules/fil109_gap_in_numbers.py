"""FIL109."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.checkpoint import NUMBERED
from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Severity

_SHOWN = 5


class GapInNumbers(FileRule):
    """Shards of a numbered series are missing.

    ## What it checks
    For files named `PREFIX-00002-of-00004.safetensors`: all numbers from 1 to 4 are there, or are named by the
    index (FIL107 reports those that it names in vain).  No number is beyond the last.

    ## Why it matters
    A shard that no index names and that is not there is missed by nobody until its weights are needed.

    ## What engines do
    None looks at the numbers.  Where the index is complete without the missing shard, nothing happens.

    ## Fix
    None in place: fetch the shard.  With an index that names only what is there the finding is a warning: the
    index may have been written after the shard was lost.

    ## References
    https://huggingface.co/docs/transformers/big_models
    """

    code, title, severity = "FIL109", "gap in the numbers of the shards", Severity.ERROR
    whole = True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each series with a gap."""
        checkpoint = ctx.checkpoint
        series: dict[tuple[str, int, int], set[int]] = {}
        example: dict[tuple[str, int, int], str] = {}
        for name in sorted([*checkpoint.shards, *checkpoint.unopened, *checkpoint.missing]):
            match = NUMBERED.fullmatch(name)
            if match and (name not in checkpoint.stray or name in checkpoint.adopted):
                key = (match[1], int(match[3]), len(match[3]))
                series.setdefault(key, set()).add(int(match[2]))
                example.setdefault(key, name)
        severity = Severity.WARNING if checkpoint.index and not checkpoint.index.problem else Severity.ERROR
        for key, numbers in series.items():
            prefix, last, width = key
            beyond = [n for n in numbers if not 1 <= n <= last]
            lacking = last - len(numbers) + len(beyond)
            if lacking > 0:
                first = [n for n in range(1, min(last, len(numbers) + _SHOWN) + 1) if n not in numbers][:_SHOWN]
                listed = ", ".join(f"{n:0{width}}" for n in first) + (", ..." if lacking > len(first) else "")
                message = f"{lacking} of the {last} shards of {prefix!r} are not there: {listed}"
                yield self.file_finding(example[key], message, count=lacking, severity=severity)
            if beyond:
                message = f"shard {min(beyond)} of a series that runs from 1 to {last}"
                yield self.file_finding(example[key], message, count=len(beyond), severity=Severity.WARNING)
