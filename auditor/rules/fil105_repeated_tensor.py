"""FIL105."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from auditor.audit import Depth
from auditor.context import Context
from auditor.filerule import LISTED, FileRule, quoted
from auditor.finding import Finding, Severity
from auditor.tensorref import TensorRef
from quant.errors import CheckpointError

_COMPARED = 4096  # bytes of both copies: enough to tell whether a re-export left a stale one


class RepeatedTensor(FileRule):
    """Two shards hold a tensor of the same name.

    ## What it checks
    Every name against every shard that a loader reads (strays and a second copy with an index of its own are
    apart).  Copies that differ in dtype or shape, or in their first 4 096 bytes where the depth allows to look,
    are an error; copies that look alike are a warning.

    ## Why it matters
    Loaders do not agree on which copy counts.  When the copies differ, one of them serves stale weights, or a
    weight of one copy with the scale of the other.

    ## What engines do
    transformers takes the copy that the index names.  vLLM uses the index only to choose files, loads every tensor
    in them, and the last file wins; so does any loader that reads `*.safetensors` in order.

    ## Fix
    None in place: write the shard without the copy that the index does not name.

    ## References
    vllm#54230
    """

    code, title, severity = "FIL105", "tensor in several shards", Severity.ERROR

    def check(self, ctx: Context) -> Iterator[Finding]:
        """Findings on the copy that is not used, up to a number for each pair of shards."""
        pairs = sorted(ctx.checkpoint.duplicates, key=lambda pair: (pair[1].shard, pair[0].shard, pair[0].name))
        for (shard, _), same in groupby(pairs, key=lambda pair: (pair[1].shard, pair[0].shard)):
            group = list(same)
            for used, other in group[:LISTED]:
                yield self._judge(used, other, ctx)
            if len(group) > LISTED:
                rest = f"{len(group) - LISTED} more tensors of this file are in {group[0][0].shard} too"
                differ = any(_differ(used, other) for used, other in group[LISTED:])
                severity = Severity.ERROR if differ else Severity.WARNING
                yield self.file_finding(shard, rest, count=len(group) - LISTED, severity=severity)

    def _judge(self, used: TensorRef, other: TensorRef, ctx: Context) -> Finding:
        severity, what = Severity.ERROR, _differ(used, other)
        if not what and ctx.depth > Depth.HEADERS:
            what = _other_bytes(used, other, ctx)
        if not what:
            severity, what = Severity.WARNING, "of the same dtype and shape"
        index = ctx.checkpoint.index
        named = index is not None and index.weight_map.get(used.name) == used.shard
        where = f"{used.shard}{', where the index puts it' if named else ''}"
        message = f"{quoted(used.name)} is in this file at offset {other.start} and in {where}, {what}"
        return self.finding(other, message, severity=severity)


def _differ(used: TensorRef, other: TensorRef) -> str:
    if (used.dtype, used.shape) == (other.dtype, other.shape):
        return ""
    return f"there {used.dtype} {list(used.shape)}, here {other.dtype} {list(other.shape)}"


def _other_bytes(used: TensorRef, other: TensorRef, ctx: Context) -> str:
    length = min(used.nbytes, _COMPARED)
    try:
        same = ctx.read(used, 0, length) == ctx.read(other, 0, length)
    except CheckpointError:
        return ""  # a file that cannot be read is reported elsewhere
    return "" if same else "with other bytes"
