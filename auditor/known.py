"""What an earlier scan measured, for a scan of the same files after some of their bytes were changed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from auditor.audit import Depth
from auditor.checkpoint import Checkpoint
from auditor.context import Context, Stamp
from auditor.finding import Finding
from auditor.measure import Measured, Task
from auditor.rule import Rule
from auditor.tensorref import TensorRef

Ranges = Sequence[tuple[int, int]]  # [start, end) in a file, ascending, disjoint


class Known(NamedTuple):
    """An earlier scan's evidence, by shard which bytes were written since, and the codes of what was found then."""

    ctx: Context
    changed: Mapping[str, Ranges]
    spoke: frozenset[str]

    @classmethod
    def since(cls, ctx: Context, findings: Iterable[Finding], changed: Mapping[str, Ranges]) -> Known:
        """What the scan knew that gave these findings."""
        return cls(ctx, changed, frozenset(finding.code for finding in findings))

    def silent(self, rule: Rule) -> bool:
        """Whether a rule that was silent then has nothing new to say: of headers and files that are the same.

        Those that need headers only and look at bytes besides (CFG107, FIL105) speak whatever the bytes are: these
        say how bad it is.
        """
        return rule.needs is Depth.HEADERS and rule.code not in self.spoke

    def keep(
        self,
        work: Mapping[Path, list[Task]],
        checkpoint: Checkpoint,
        planned: Callable[[TensorRef], Task | None] | None,
    ) -> tuple[dict[Path, list[Task]], Measured]:
        """The tasks of ``work`` that were not done before on bytes that are the same, and what the others gave.

        ``planned``: how a tensor of the earlier scan was measured, None where all are as they were.  A shard that was
        not written must be the very file of then, its time of last change included; of one that was, only the bytes
        that were not.
        """
        todo, kept = dict(work), Measured()
        for name, shard in checkpoint.shards.items():
            tasks = work.get(shard.path)
            if not tasks or not self._same_file(name, shard.path):
                continue
            ranges = self.changed.get(name, ())
            fresh = []
            for task in tasks:
                stats = self.ctx.measured.stats.get(task.tensor)
                alike = planned is None or self._alike(task, name, planned)
                if stats is None or not alike or _hit(ranges, task.start, task.start + task.nbytes):
                    fresh.append(task)
                else:
                    kept.stats[task.tensor] = stats
            todo[shard.path] = fresh
        return todo, kept

    def _alike(self, task: Task, shard: str, planned: Callable[[TensorRef], Task | None]) -> bool:
        then = self.ctx.checkpoint.tensors.get(task.tensor)
        return then is not None and then.shard == shard and planned(then) == task

    def _same_file(self, name: str, path: Path) -> bool:
        then, now = self.ctx.stamps.get(name), stamp(path)
        if then is None or now is None:
            return False
        return then == now if name not in self.changed else then[:3] == now[:3]


def stamp(path: Path) -> Stamp | None:
    """Device, inode, size and time of last change of a file; None when it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _hit(ranges: Ranges, start: int, end: int) -> bool:
    """Whether a range reaches into [start, end)."""
    place = bisect_right(ranges, (start, end))
    return (place > 0 and ranges[place - 1][1] > start) or (place < len(ranges) and ranges[place][0] < end)
