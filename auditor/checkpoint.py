"""A checkpoint on disk: shards, index, configuration files, and what is wrong with them as files."""

from __future__ import annotations

import hashlib
import operator
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from auditor import header as headers
from auditor import jsonfile
from auditor.draft import shown
from auditor.header import Flaw, Header, Problem
from auditor.interrupted import half_done, interrupted
from auditor.jsonfile import Json
from auditor.source import opened
from auditor.tensorref import TensorRef
from quant.errors import CheckpointError

MAX_TENSORS = 2_000_000  # of all shards together: a bound on memory
SUFFIX = ".safetensors"
SINGLE = "model.safetensors"  # what a loader takes first, index or not
INDEX_SUFFIX = ".safetensors.index.json"
CONFIG = "config.json"
HF_QUANT_CONFIG = "hf_quant_config.json"
NUMBERED = re.compile(r"(.*)-([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
UNFINISHED = "UNFINISHED.json"  # in a folder that a new checkpoint is growing in


@dataclass
class Shard:
    """One safetensors file.  ``digest``: of the bytes that its header was read from."""

    name: str
    path: Path
    size: int
    header: Header
    digest: bytes = b""


@dataclass
class Index:
    """A weight map: tensor name -> shard name, and the entries that are not usable as such."""

    file: str
    weight_map: dict[str, str] = field(default_factory=dict)
    unsafe: dict[str, str] = field(default_factory=dict)  # tensor -> what it is mapped to, for a message
    problem: str = ""
    total_size: int | None = None
    odd_size: str = ""  # what stands for it when it is no number of bytes, for a message

    def shards(self) -> set[str]:
        """Names of all shards that the index names."""
        return set(self.weight_map.values())


@dataclass
class Checkpoint:
    """What the files say, before anything is judged."""

    root: Path
    name: str
    whole: bool  # False when one shard was named: other files were not looked at
    shards: dict[str, Shard] = field(default_factory=dict)
    unopened: dict[str, str] = field(default_factory=dict)  # shard -> why it could not be read
    missing: dict[str, int] = field(default_factory=dict)  # shard named by the index -> tensors it should hold
    stray: list[str] = field(default_factory=list)  # shards in the folder that no index names
    index: Index | None = None
    other_indices: list[Index] = field(default_factory=list)  # of a second copy: consolidated.*, say
    config: Json | None = None
    hf_quant_config: Json | None = None
    config_problems: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, TensorRef] = field(default_factory=dict)
    duplicates: list[tuple[TensorRef, TensorRef]] = field(default_factory=list)  # (used, other copy)
    interrupted: str = ""  # journal of a repair that did not end
    bytes_read: int = 0  # of shards: their headers

    @property
    def bytes_held(self) -> int:
        """Size of all shards together, in bytes."""
        return sum(shard.size for shard in self.shards.values())

    def same_tensors(self, other: Checkpoint) -> bool:
        """Whether both have the very same tensors: every header that counts was taken apart once for both."""
        ours, theirs = self.tensors, other.tensors
        return len(ours) == len(theirs) and all(map(operator.is_, ours.values(), theirs.values()))

    def served(self) -> set[str]:
        """Shards that a loader reads: no stray files, and none of a second copy under another index."""
        named = self.index.shards() if self.index else set()
        apart = {name for index in self.other_indices for name in index.shards()} - named
        return self.shards.keys() - apart - set(self.stray)

    @cached_property
    def adopted(self) -> frozenset[str]:
        """Stray shards that belong to the model: what they hold is nowhere else, and the index means them.

        It names all their tensors, in other shards (one was renamed), or shards of their numbered series, or nothing.
        """
        if self.index is None or self.index.problem:
            return frozenset()
        named, series = self.index.weight_map, {_series(name) for name in self.index.shards()} - {None}
        found = set()
        for name in self.stray:
            shard = self.shards.get(name)
            if shard is None or shard.header.refused or shard.header.unreadable or not shard.header.tensors:
                continue
            meant = _series(name) in series if series else not named and _series(name) is not None
            if all((meant or ref.name in named) and self.tensors[ref.name] is ref for ref in shard.header.tensors):
                found.add(name)
        return frozenset(found)

    def ours(self) -> frozenset[str]:
        """Shards of the model, whether or not the index says so."""
        return self.adopted.union(self.served())

    def indexed(self) -> list[Shard]:
        """Shards that the index names and whose headers could be read."""
        named = self.index.shards() if self.index else set()
        return [shard for name, shard in self.shards.items() if name in named and not shard.header.refused]


def _series(name: str) -> tuple[str, str] | None:
    """What a shard's name has in common with the others of its numbered series; None for a name without numbers."""
    found = NUMBERED.fullmatch(name)
    return (found[1], found[3]) if found else None


def open_checkpoint(path: str | Path, earlier: Checkpoint | None = None) -> Checkpoint:
    """Read headers, index and configuration of a folder, of one shard, or of what an index names.

    A header whose bytes are those of an ``earlier`` reading is not taken apart again.
    Raises CheckpointError when there is nothing there to audit; everything else is kept for the rules.
    """
    path = Path(path)
    shards = earlier.shards if earlier else {}
    try:
        if path.is_dir():
            checkpoint = _from_folder(path, shards)
        elif path.is_file() and path.name.endswith(INDEX_SUFFIX):
            checkpoint = _from_index(path, shards)
        elif path.is_file() and path.name.endswith(SUFFIX):
            checkpoint = Checkpoint(path.parent, str(path), whole=False)
            _read_shards(checkpoint, [path.name], {path.name}, shards)
        elif os.path.lexists(path):
            raise CheckpointError(f"{path}: neither a folder, nor a {SUFFIX} file, nor an index")
        else:
            raise CheckpointError(f"{path}: no such file or folder")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    checkpoint.interrupted = interrupted(checkpoint.root)
    _read_configs(checkpoint)
    _join(checkpoint)
    return checkpoint


def open_settled(path: str | Path) -> Checkpoint:
    """As `open_checkpoint`, to make something of its weights: CheckpointError while a repair of it is half done."""
    checkpoint = open_checkpoint(path)
    if checkpoint.interrupted:
        raise CheckpointError(half_done(checkpoint.root, checkpoint.interrupted))
    return checkpoint


def _from_folder(root: Path, earlier: Mapping[str, Shard]) -> Checkpoint:
    names = sorted(os.listdir(root))
    if UNFINISHED in names:
        raise CheckpointError(f"{root}: is unfinished, see its {UNFINISHED}; the command that began it can go on")
    shards = [n for n in names if n.endswith(SUFFIX)]
    indices = [n for n in names if n.endswith(INDEX_SUFFIX)]
    if not shards and not indices:
        raise CheckpointError(f"{root}: holds no {SUFFIX} file")
    checkpoint = Checkpoint(root, str(root), whole=True)
    # transformers and vLLM read model.*; other indices (consolidated.*, say) describe a second copy.
    indices.sort(key=lambda n: (n != "model" + INDEX_SUFFIX, n))
    found = [_read_index(checkpoint, root / name) for name in indices]
    if found:
        checkpoint.index, checkpoint.other_indices = found[0], found[1:]
        known = set().union(*(index.shards() for index in found))
        if not checkpoint.index.problem:
            checkpoint.stray = [n for n in shards if n not in known]
    elif SINGLE in shards:
        checkpoint.stray = [n for n in shards if n != SINGLE]
    _read_shards(checkpoint, shards, set(names), earlier)
    return checkpoint


def _from_index(path: Path, earlier: Mapping[str, Shard]) -> Checkpoint:
    checkpoint = Checkpoint(path.parent, str(path), whole=True)
    checkpoint.index = _read_index(checkpoint, path)
    if checkpoint.index.problem:
        raise CheckpointError(f"{path}: {checkpoint.index.problem}")
    _read_shards(checkpoint, [], set(os.listdir(path.parent)), earlier)
    return checkpoint


def _read_index(checkpoint: Checkpoint, path: Path) -> Index:
    index = Index(path.name)
    try:
        content = jsonfile.load(path, jsonfile.MAX_INDEX)
    except CheckpointError as error:
        index.problem = str(error).removeprefix(f"{path.name}: ")
        return index
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        index.problem = "has no weight_map object"
        return index
    metadata = jsonfile.table(content.get("metadata"))
    if "total_size" in metadata:
        index.total_size = _whole(metadata["total_size"])
        index.odd_size = "" if index.total_size is not None else shown(metadata["total_size"])
    names: dict[str, str] = {}  # the few distinct ones, checked once and kept once
    for tensor, file in weight_map.items():
        if isinstance(file, str) and (file in names or is_file_name(file)):
            index.weight_map[tensor] = names.setdefault(file, file)
        else:
            index.unsafe[tensor] = repr(file[:200]) if isinstance(file, str) else f"a JSON {type(file).__name__}"
    return index


def _whole(value: object) -> int | None:
    """``value`` where it is a whole number that a file's size can be told by, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63 or value % 1:
        return None  # NaN is below nothing
    return int(value)


def is_file_name(value: str) -> bool:
    """Whether ``value`` can only mean a file inside the folder: no separator, no dots alone, no NUL."""
    return bool(value) and value not in (".", "..") and not any(c in value for c in "/\\\0") and len(value) <= 255


def _read_shards(checkpoint: Checkpoint, names: list[str], present: set[str], earlier: Mapping[str, Shard]) -> None:
    """Read these shards and those that the index names; ``present`` is what the folder holds."""
    wanted = checkpoint.index.shards() if checkpoint.index else set()
    tensors = 0
    for name in sorted(wanted.union(names)):
        if name not in present:
            checkpoint.missing[name] = 0
            continue
        path = checkpoint.root / name
        try:
            if tensors > MAX_TENSORS:
                raise CheckpointError(f"{name}: not read: the shards before it hold over {MAX_TENSORS} tensors")
            shard = checkpoint.shards[name] = _read_shard(checkpoint, name, path, earlier.get(name))
            tensors += len(shard.header.tensors) + len(shard.header.unreadable)
        except CheckpointError as error:
            checkpoint.unopened[name] = str(error).removeprefix(f"{name}: ")


def _read_shard(checkpoint: Checkpoint, name: str, path: Path, earlier: Shard | None) -> Shard:
    with opened(path) as file:
        raw = file.read(0, min(8, file.size))
        length, problem = headers.header_length(raw, file.size)
        if not problem:
            raw = file.read(0, 8 + length)
        checkpoint.bytes_read += len(raw)
        digest = hashlib.sha256(raw).digest()
        if earlier is not None and (earlier.size, earlier.digest) == (file.size, digest):
            return Shard(name, path, file.size, earlier.header, digest)
        return Shard(name, path, file.size, headers.parse(raw, name, file.size), digest)


def _read_configs(checkpoint: Checkpoint) -> None:
    for name in (CONFIG, HF_QUANT_CONFIG):
        path = checkpoint.root / name
        if not os.path.lexists(path):
            continue
        try:
            content = jsonfile.load(path)
        except CheckpointError as error:
            checkpoint.config_problems[name] = str(error).removeprefix(f"{name}: ")
            continue
        if name == CONFIG:
            checkpoint.config = content
        else:
            checkpoint.hf_quant_config = content


def _join(checkpoint: Checkpoint) -> None:
    """One table of tensors; of two copies the one the index names is used, else the first shard's.

    Copies in stray files or of another index are no duplicates: no loader reads both.
    """
    weight_map = checkpoint.index.weight_map if checkpoint.index else {}
    served, tensors = checkpoint.served(), checkpoint.tensors
    for name in sorted(checkpoint.shards, key=lambda n: (n not in served, n)):
        for ref in checkpoint.shards[name].header.tensors:
            used = tensors.setdefault(ref.name, ref)
            if used is ref or name not in served:
                continue
            if weight_map.get(ref.name) == ref.shard:
                tensors[ref.name], used, ref = ref, ref, used
            checkpoint.duplicates.append((used, ref))
    if checkpoint.missing:
        mapped = Counter(weight_map.values())
        checkpoint.missing = {name: mapped[name] for name in checkpoint.missing}


__all__ = ["Checkpoint", "Flaw", "Index", "Problem", "Shard", "is_file_name", "open_checkpoint"]
