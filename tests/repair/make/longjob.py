"""A job of some megabytes on the real file system, to be run in a process of its own: ``longjob.py SRC DST``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from auditor.checkpoint import open_checkpoint
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make.folder import make
from repair.make.job import Job
from repair.make.shard import Copy, Fill, NewShard, Piece, Row
from repair.make.sources import Sources
from repair.shardheader import Entry, ordered
from tests.raw import Raw, shard_bytes

_STEP = 1 << 14


@dataclass(frozen=True)
class Sized(Row):
    """How long a tensor is."""

    nbytes: int


def write_source(root: Path, shards: int = 4, nbytes: int = 1 << 20) -> Path:
    """A source of so many shards of three tensors each."""
    root.mkdir()
    for number in range(shards):
        data = bytes(((number + at) * 31) & 255 for at in range(256)) * (nbytes // 256)
        held = {f"{number}.{name}": Raw("U8", (nbytes,), data) for name in "abc"}
        (root / f"model-{number:05}.safetensors").write_bytes(shard_bytes(held))
    (root / "config.json").write_text('{"model_type": "x"}')
    (root / "tokenizer.json").write_bytes(b" " * (1 << 20))
    return root


def job(root: Path, options: dict[str, str] | None = None) -> Job:
    """Every tensor in small pieces, every other one copied, the others read and written."""
    checkpoint = open_checkpoint(root)
    sources = Sources(checkpoint)

    def pieces(ref: TensorRef) -> Iterator[Piece]:
        for at in range(0, ref.nbytes, _STEP):
            length = min(_STEP, ref.nbytes - at)
            if ref.name.endswith("a"):
                yield Copy(ref.name, at, sources, ref, at, length)
            else:
                yield Fill(ref.name, at, bytes(255 - byte for byte in sources.read(ref, at, length)))
        yield Sized(ref.name, ref.nbytes)

    shards = []
    for name, shard in sorted(checkpoint.shards.items()):
        refs = shard.header.tensors
        tasks = tuple(lambda ref=ref: pieces(ref) for ref in refs)  # type: ignore[misc]
        shards.append(NewShard(name, ordered(Entry(r.name, r.dtype, r.shape) for r in refs), tasks))
    return Job("long", options or {"way": "best"}, (sources,), tuple(shards), {"config.json": b"{}\n"}, Sized)


if __name__ == "__main__":
    try:
        print(len(make(job(Path(sys.argv[1])), Path(sys.argv[2]), resume=True, jobs=2).rows))
    except RepairError as error:
        sys.exit(f"refused: {error}")
