"""A small job on a disk in memory: two source shards, two new ones, files beside them, and what must come of it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from auditor.checkpoint import Checkpoint, Index, Shard
from auditor.header import parse
from repair.make.job import Job
from repair.make.shard import Copy, Fill, NewShard, Piece, Row, Task, whole
from repair.make.sources import Sources
from repair.shardheader import Entry, ordered
from tests.raw import Raw, raw, shard_bytes
from tests.repair.memory import ROOT, Disk, MemoryFs

SRC, DST = ROOT / "src", ROOT / "new"
WORK = ROOT / "new.incomplete"
BESIDE = {"tokenizer.json": b'{"model": {}}', "sub/notes.txt": b"notes", "generation_config.json": b"{}"}
SHARDS: dict[str, dict[str, Raw]] = {
    "a.safetensors": {"one": raw("U8", range(40)), "two": raw("F32", [1.5, -2.0]), "empty": raw("F32", [], (0, 3))},
    "b.safetensors": {"three": raw("I64", [7]), "truth": raw("BOOL", [1, 0, 1])},
}


@dataclass(frozen=True)
class Told(Row):
    """A row of every kind of field."""

    number: int
    share: float
    exact: bool


def disk() -> Disk:
    """The source, and nothing else."""
    found = Disk()
    for folder in (ROOT, SRC, SRC / "sub"):
        inode = found.new(stat.S_IFDIR | 0o755)
        found.names[folder] = found.durable[folder] = inode.number
    for name, content in {**BESIDE, **{name: shard_bytes(held) for name, held in SHARDS.items()}}.items():
        found.put(SRC / name, content)
    found.put(SRC / "config.json", b'{"model_type": "old"}')
    found.put(SRC / "model.safetensors.index.json", b"{}")
    return found


def checkpoint(fs: MemoryFs) -> Checkpoint:
    """The source as the auditor would read it."""
    found = Checkpoint(SRC, str(SRC), whole=True)
    found.index = Index("model.safetensors.index.json")
    for name in SHARDS:
        content = bytes(fs.disk.inodes[fs.disk.names[SRC / name]].content)
        header = parse(content, name, len(content))
        found.shards[name] = Shard(name, SRC / name, len(content), header)
        found.tensors |= {ref.name: ref for ref in header.tensors}
        found.index.weight_map |= {ref.name: name for ref in header.tensors}
    return found


def job(fs: MemoryFs, options: dict[str, str] | None = None) -> Job:
    """Copies, pieces in odd order, rows; one tensor is new, one changes, the rest stay."""
    read = checkpoint(fs)
    sources, refs = Sources(read, fs), read.tensors

    def changed() -> Iterator[Piece]:
        yield Copy("one", 16, sources, refs["one"], 0, 24)
        yield Fill("one", 0, bytes(16))
        yield Told("one", 24, 0.25, True)

    def new() -> Iterator[Piece]:
        for at in range(0, 96, 32):
            yield Fill("new", at, bytes([at]) * 32)
        yield Told("new", 96, float("inf"), False)

    first = (Entry("one", "U8", (40,)), Entry("two", "F32", (2,)), Entry("empty", "F32", (0, 3)))
    second = (Entry("three", "I64", (1,)), Entry("truth", "BOOL", (3,)), Entry("new", "U8", (96,)))
    kept: Callable[[str], Task] = lambda name: whole(name, sources, refs[name])  # noqa: E731
    shards = (
        NewShard("a.safetensors", ordered(first), (changed, kept("two"), kept("empty"))),
        NewShard("b.safetensors", ordered(second), (new, kept("three"), kept("truth"))),
    )
    texts = {"config.json": b'{"model_type": "new"}\n', "hf_quant_config.json": None}
    return Job("test", options or {"way": "best"}, (sources,), shards, texts, Told)


def expected() -> dict[str, bytes]:
    """Every file of the new checkpoint."""
    a, b = dict(SHARDS["a.safetensors"]), dict(SHARDS["b.safetensors"])
    a["one"] = raw("U8", [*[0] * 16, *range(24)])
    b["new"] = raw("U8", [at for at in (0, 32, 64) for _ in range(32)])
    held = {**dict.fromkeys(a, "a.safetensors"), **dict.fromkeys(b, "b.safetensors")}
    total = sum(len(tensor.data) for tensor in (*a.values(), *b.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(held.items()))}
    return {
        **BESIDE,
        "a.safetensors": shard_bytes(a),
        "b.safetensors": shard_bytes(b),
        "config.json": b'{"model_type": "new"}\n',
        "model.safetensors.index.json": (json.dumps(index, indent=2) + "\n").encode(),
    }


def content(found: Disk, folder: Path) -> dict[str, bytes] | None:
    """Every file under a folder; None when there is no such folder."""
    if folder not in found.names:
        return None
    inodes = {path: found.inodes[number] for path, number in found.names.items() if folder in path.parents}
    return {str(p.relative_to(folder)): bytes(i.content) for p, i in inodes.items() if stat.S_ISREG(i.mode)}
