"""What rules about files share: findings that are listed up to a number and counted from there on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Severity
from auditor.header import Flaw
from auditor.rule import CheckpointRule

LISTED = 20  # findings of one rule about one file; the rest is one more finding with a count

REBUILD = "rebuild the index from the shards' headers"


class FileRule(CheckpointRule):
    """A rule about files, which needs nothing but headers."""

    needs: ClassVar[Depth] = Depth.HEADERS

    def listed(
        self,
        file: str,
        tensors: Iterable[tuple[str, str]],
        total: int,
        *,
        fix: Remedy | None = None,
        severity: Severity | None = None,
    ) -> Iterator[Finding]:
        """Findings for the first LISTED of ``total`` (tensor, message) pairs about a file, and one for the rest.

        ``tensor`` may be "" where only the file is known.
        """
        for tensor, message in islice(tensors, LISTED):
            yield self.file_finding(file, message, tensor=tensor, fix=fix, severity=severity)
        if total > LISTED:
            rest = f"{total - LISTED} more of the same kind in this file"
            yield self.file_finding(file, rest, count=total - LISTED, fix=fix, severity=severity)


class HeaderRule(FileRule):
    """A rule that reports one kind of flaw which the header reader met."""

    flaw: ClassVar[Flaw]

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding for each flaw, up to a number for each shard."""
        for shard in ctx.checkpoint.shards.values():
            total = shard.header.counts[self.flaw]
            if not total:
                continue
            problems = [p for p in shard.header.problems if p.flaw is self.flaw]
            yield from self.listed(shard.name, ((p.tensor, f"offset {p.offset}: {p.message}") for p in problems), total)


def quoted(name: str) -> str:
    """A name for use in a message: quoted, escaped, shortened."""
    return repr(name if len(name) <= 200 else name[:200] + "...")
