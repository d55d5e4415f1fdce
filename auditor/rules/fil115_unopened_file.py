"""FIL115."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule
from auditor.finding import Finding, Severity


class UnopenedFile(FileRule):
    """A shard cannot be opened or read.

    ## What it checks
    Every `*.safetensors` entry of the folder, and every file that the index names, is a regular file (or a link
    to one) that may be read.

    ## Why it matters
    Nothing in it was checked.  Most often a link of a download cache leads to a file that was never fetched.

    ## What engines do
    They stop with the system's message; a named pipe makes them wait for ever.

    ## Fix
    None: fetch the file, or change its permissions.

    ## References
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """

    code, title, severity = "FIL115", "file cannot be read", Severity.ERROR

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each file."""
        for name, reason in ctx.checkpoint.unopened.items():
            yield self.file_finding(name, reason)
