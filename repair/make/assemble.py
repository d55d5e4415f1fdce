"""From what becomes of each weight to the whole new checkpoint: shards, configuration, and all that stays as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from auditor.checkpoint import Checkpoint
from auditor.declaration import Algorithm, Group
from auditor.layer import split
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.errors import RepairError
from repair.make.declare import Declaration, texts
from repair.make.job import Job
from repair.make.layouts import Layout
from repair.make.shard import NewShard, Row, Task, whole
from repair.make.sources import Sources
from repair.make.wildcards import summarised
from repair.shardheader import Entry, ordered

_HEAD = "lm_head"


@dataclass(frozen=True)
class Remade:
    """What becomes of one weight (or of several that only make sense together).

    ``home``: the shard of the source that it lies in; the new tensors go into the shard of that name.  ``consumed``:
    names of the source's tensors that it replaces.  ``modules``: the new modules as a server knows them, and the
    ``algorithm`` to declare for them; None when they are not quantised.  The ``tasks`` give the bytes of ``entries``.
    """

    home: str
    consumed: frozenset[str]
    entries: tuple[Entry, ...]
    tasks: tuple[Task, ...]
    modules: tuple[str, ...]
    algorithm: Algorithm | None


@dataclass(frozen=True)
class Wish:
    """How the new checkpoint is asked for.  ``kind``, ``options``, ``row``: see `Job`."""

    kind: str
    options: Mapping[str, str]
    layout: Layout
    row: type[Row] = Row
    kv_fp8: bool = False


def assemble(
    wish: Wish, checkpoint: Checkpoint, sources: Sources, remade: Sequence[Remade], others: Sequence[Sources] = ()
) -> Job:
    """The job: everything that no `Remade` consumes is carried over as it is; the index and configuration fit.

    ``others``: further sources that the tasks read.  RepairError when two of them consume or make one tensor, when a
    consumed tensor is not there, when nothing is quantised at all, or when the source cannot be read whole.
    """
    expect_whole(checkpoint)
    tensors = served(checkpoint)
    consumed = _consumed(remade, tensors)
    if not any(one.algorithm for one in remade):
        raise RepairError(f"{checkpoint.name}: nothing to {wish.kind}: no weight in it is of a kind that this changes")
    entries: dict[str, list[Entry]] = defaultdict(list)
    tasks: dict[str, list[Task]] = defaultdict(list)
    for one in remade:
        entries[one.home] += one.entries
        tasks[one.home] += one.tasks
    stays = [ref for ref in tensors.values() if ref.name not in consumed]
    for ref in sorted(stays, key=lambda ref: (ref.shard, ref.start)):
        entries[ref.shard].append(Entry(ref.name, ref.dtype, ref.shape))
        tasks[ref.shard].append(whole(ref.name, sources, ref))
    _expect_distinct(entries)
    shards = tuple(
        NewShard(name, ordered(entries[name]), tuple(tasks[name]), _metadata(checkpoint, name))
        for name in sorted(entries)
    )
    declaration = Declaration(_groups(remade), _ignored(wish.layout, checkpoint, stays, remade), wish.kv_fp8)
    return Job(
        kind=wish.kind,
        options={**wish.options, "layout": wish.layout.value},
        sources=(sources, *others),
        shards=shards,
        texts=texts(wish.layout, checkpoint.config or {}, declaration),
        row=wish.row,
    )


def served(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    """The tensors that a loader reads: none of stray files, or of a second copy under another index."""
    shards = checkpoint.served()
    return {name: ref for name, ref in checkpoint.tensors.items() if ref.shard in shards}


def expect_whole(checkpoint: Checkpoint) -> None:
    """RepairError, naming the first file, when a shard is missing, unreadable, or breaks a rule of the format."""
    if not checkpoint.whole:
        raise RepairError(f"{checkpoint.name}: is one shard; a new checkpoint is made from a whole folder")
    for name in sorted(checkpoint.missing):
        raise RepairError(f"{name}: is named by the index, but is not there")
    for name, why in sorted(checkpoint.unopened.items()):
        raise RepairError(f"{name}: {why}")
    for name, shard in sorted(checkpoint.shards.items()):
        if shard.header.problems:
            raise RepairError(f"{name}: {shard.header.problems[0].message}")
    if checkpoint.index is not None and checkpoint.index.problem:
        raise RepairError(f"{checkpoint.index.file}: {checkpoint.index.problem}")
    for name, why in sorted(checkpoint.config_problems.items()):
        raise RepairError(f"{name}: {why}")
    if checkpoint.duplicates:
        used, other = checkpoint.duplicates[0]
        raise RepairError(f"{other.shard}: {other.name}: is in {used.shard} as well")


def _consumed(remade: Iterable[Remade], tensors: Mapping[str, TensorRef]) -> set[str]:
    consumed: set[str] = set()
    for one in remade:
        for name in sorted(one.consumed):
            if name not in tensors:
                raise RepairError(f"{one.home}: has no tensor {name[:200]}")
            if name in consumed:
                raise RepairError(f"{one.home}: {name[:200]} belongs to two weights")
            consumed.add(name)
    return consumed


def _expect_distinct(entries: Mapping[str, list[Entry]]) -> None:
    seen: dict[str, str] = {}
    for shard, found in sorted(entries.items()):
        for entry in found:
            if entry.name in seen:
                where = f"{seen[entry.name]} and {shard}" if seen[entry.name] != shard else shard
                raise RepairError(f"{where}: two tensors would be called {entry.name[:200]}")
            seen[entry.name] = shard


def _metadata(checkpoint: Checkpoint, shard: str) -> Mapping[str, str]:
    return checkpoint.shards[shard].header.metadata or {"format": "pt"}


def _groups(remade: Iterable[Remade]) -> tuple[Group, ...]:
    """One group for each algorithm; a lone one is meant for every Linear that is not ignored."""
    modules: dict[Algorithm, list[str]] = {}
    for one in remade:
        if one.algorithm is not None:
            modules.setdefault(one.algorithm, []).extend(one.modules)
    if len(modules) == 1:
        return (Group("group_0", next(iter(modules)), ("Linear",)),)
    return tuple(
        Group(f"group_{number}", algorithm, tuple(sorted(set(names))))
        for number, (algorithm, names) in enumerate(modules.items())
    )


def _ignored(
    layout: Layout, checkpoint: Checkpoint, stays: Iterable[TensorRef], remade: Iterable[Remade]
) -> tuple[str, ...]:
    """Modules that hold a matrix and are not quantised, by name; the output head also where it is tied."""
    quantised = {module for one in remade if one.algorithm is not None for module in one.modules}
    found = set()
    for ref in stays:
        module, leaf = split(ref.name)
        if ref.dtype not in FLOAT_DTYPES or len(ref.shape) < 2 or leaf.endswith("bias"):
            continue
        if "embed" in module.rpartition(".")[2] and layout is Layout.COMPRESSED_TENSORS:
            continue  # no Linear: compressed-tensors never targets it
        if leaf == "weight" or len(ref.shape) == 3:
            found.add(module)
    head = next((name for name in (*found, *quantised) if name.rpartition(".")[2] == _HEAD), None)
    if head is None and not any(name.endswith(f"{_HEAD}.weight") for name in checkpoint.tensors):
        found.add(_HEAD)
    if layout is Layout.MODELOPT:
        return summarised(found - quantised, quantised)
    return tuple(sorted(found - quantised))
