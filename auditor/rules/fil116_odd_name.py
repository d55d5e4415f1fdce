"""FIL116."""

from __future__ import annotations

import re
from collections.abc import Iterator

from auditor.context import Context
from auditor.filerule import FileRule, quoted
from auditor.finding import Finding, Severity

# C0, C1, DEL; zero-width and bidirectional marks, embeddings and isolates; line separators; halves of pairs.
_ODD = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class OddName(FileRule):
    """A name holds control or bidirectional characters.

    ## What it checks
    Names of tensors, metadata keys and files: control characters, zero-width characters, marks that reverse or
    isolate text, line separators, bytes that are not UTF-8.

    ## Why it matters
    Such a name looks like another on a screen, or writes to the terminal that prints it.  No exporter makes one.

    ## What engines do
    They use the name as it is: a tensor that looks right is reported as missing.

    ## Fix
    None in place: write the shard again under the right name.

    ## References
    https://www.unicode.org/reports/tr36/
    """

    code, title, severity = "FIL116", "control characters in a name", Severity.WARNING

    def check(self, ctx: Context) -> Iterator[Finding]:
        """Findings on files, tensors and metadata keys, up to a number for each file."""
        checkpoint = ctx.checkpoint
        for name in [*checkpoint.shards, *checkpoint.unopened, *checkpoint.missing]:
            if _ODD.search(name):
                yield self.file_finding(name, f"the file's name holds {_which(name)}")
        for shard in checkpoint.shards.values():
            header = shard.header
            tensors = [ref.name for ref in header.tensors if _ODD.search(ref.name)]
            tensors += [name for name in header.unreadable if _ODD.search(name)]
            keys = [key for key in header.metadata if _ODD.search(key)]
            found = [(name, f"tensor name {quoted(name)} holds {_which(name)}") for name in tensors[:100]]
            found += [("", f"metadata key {quoted(key)} holds {_which(key)}") for key in keys[:100]]
            yield from self.listed(shard.name, found, len(tensors) + len(keys))


def _which(name: str) -> str:
    odd = sorted(set(_ODD.findall(name)))
    return ", ".join(f"U+{ord(char):04X}" for char in odd[:4]) + (", ..." if len(odd) > 4 else "")
