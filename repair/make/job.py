"""What is to be made: the new shards and files, and what an interrupted run must agree with to be gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from auditor.checkpoint import CONFIG, INDEX_SUFFIX, SINGLE
from quant.errors import RepairError
from repair.make.shard import NewShard, Row
from repair.make.sources import Sources

INDEX = "model" + INDEX_SUFFIX


@dataclass(frozen=True)
class Job:
    """A checkpoint to be made.

    ``kind`` and ``options``: what a resumed run must agree with.  ``sources``: the first one's other files are carried
    over, but for ``texts`` (name -> content; None leaves the file out).  ``row``: what the tasks' rows are.
    """

    kind: str
    options: Mapping[str, str]
    sources: tuple[Sources, ...]
    shards: tuple[NewShard, ...]
    texts: Mapping[str, bytes | None]
    row: type[Row] = Row

    @property
    def files(self) -> dict[str, bytes | None]:
        """The index and the ``texts``, config.json last: with it a loader would take the folder for a checkpoint."""
        found = {**self._index(), **self.texts}
        return dict(sorted(found.items(), key=lambda item: item[0] == CONFIG))

    def _index(self) -> dict[str, bytes | None]:
        if [shard.name for shard in self.shards] == [SINGLE]:
            return {INDEX: None}
        held = {entry.name: shard.name for shard in self.shards for entry in shard.entries}
        total = sum(entry.nbytes for shard in self.shards for entry in shard.entries)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(held.items()))}
        return {INDEX: (json.dumps(content, indent=2) + "\n").encode()}

    def identity(self) -> dict[str, Any]:
        """What is made from what, as JSON: the tensors to be written, and each source shard's digest."""
        made = {shard.name: [[*map(list, shard.entries)], dict(shard.metadata)] for shard in self.shards}
        texts = {name: None if raw is None else raw.decode("utf-8", "replace") for name, raw in self.texts.items()}
        found = {
            "tool": tool_version(),
            "kind": self.kind,
            "options": dict(self.options),
            "sources": [source.identity() for source in self.sources],
            "tensors": {name: _digest(content) for name, content in made.items()},
            "texts": {name: _digest(content) for name, content in texts.items()},
        }
        normal: dict[str, Any] = json.loads(json.dumps(found))  # as it is read again
        return normal


def tool_version() -> str:
    """This package's version, "" when it is not installed."""
    try:
        return version("checkpoint-audit")
    except PackageNotFoundError:
        return ""


def expect_same(identity: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """RepairError, naming what differs, when an unfinished folder was begun for another job.

    ``identity``: this job's; ``found``: as noted in the folder, which may hold anything.
    """
    for key, now in identity.items():
        then = found.get(key)
        if then == now:
            continue
        what = f"{key} {_short(then)}, not {_short(now)}"
        if isinstance(now, dict):
            what = _differing(key, now, then)
        elif isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
            pairs = zip(now, then, strict=True)
            what = next(_differing(key, one, other) for one, other in pairs if one != other)
        raise RepairError(f"{where}: was begun with other {what}; remove it to begin anew")


def _differing(key: str, now: Mapping[str, Any], then: object) -> str:
    """The first entry of a table that differs."""
    if not isinstance(then, dict):
        return key
    name = min(name for name in {*now, *then} if now.get(name) != then.get(name))
    if key == "options":
        return f"options: {name} {_short(then.get(name))}, not {_short(now.get(name))}"
    return f"{key}: {name[:200]}"


def _short(value: object) -> str:
    return repr(value)[:100]


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
