"""FIL106, FIL108, FIL110, FIL114: the index, rebuilt from the shards' headers in the form it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from auditor.checkpoint import INDEX_SUFFIX, Checkpoint
from auditor.finding import Finding, Safety
from repair.content import length_of
from repair.fixes.desk import Desk
from repair.fixes.proposal import Left, NewTensor, Proposal, TextEdit

_REASON = "what each shard holds is in its header"


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """One new index for all findings about it."""
    if finding.fix is None:
        yield Left(finding.code, finding.tensor, "no shard that can be read holds it: the export has to be repeated")
        return
    if ("index", "") in desk.done:
        return
    checkpoint = desk.ctx.checkpoint
    if checkpoint.missing or checkpoint.unopened or any(s.header.refused for s in checkpoint.shards.values()):
        yield Left(finding.code, finding.tensor, "a shard is missing or cannot be read: its tensors are not known")
        return
    file = checkpoint.index.file if checkpoint.index else "model" + INDEX_SUFFIX
    path = checkpoint.root / file
    old = path.read_text("utf-8-sig") if path.exists() else ""
    new = rebuilt(old, checkpoint, {})
    desk.done.add(("index", ""))
    entries = len(_weight_map(checkpoint))
    change = f"{file}: {entries} tensors in {len(_used(checkpoint))} shards"
    edit = TextEdit(file, new.encode())
    yield Proposal(finding.code, finding.tensor, Safety.EXACT, _REASON, finding.count, change, (edit,))


def rebuilt(old: str, checkpoint: Checkpoint, changed: Mapping[str, NewTensor]) -> str:
    """The index as text: other keys and metadata kept, entries in the order they had, indented as it was.

    ``changed``: tensors that will be added or have another size, by name.
    """
    content: dict[str, Any] = json.loads(old) if old else {"metadata": {}}
    stored = _weight_map(checkpoint) | {t.name: t.like.shard for t in changed.values() if t.beside}
    sizes = {name: ref.nbytes for name, ref in checkpoint.tensors.items()}
    sizes |= {name: length_of(t.content) for name, t in changed.items()}
    before = content.get("weight_map")
    kept = [name for name in before if name in stored] if isinstance(before, dict) else []
    known = set(kept)
    order = [*kept, *(name for name in stored if name not in known)]
    if not isinstance(before, dict) or list(before) == sorted(before):
        order = sorted(order)
    content["weight_map"] = {name: stored[name] for name in order}
    metadata = content.setdefault("metadata", {})
    if isinstance(metadata, dict) and ("total_size" in metadata or not old):
        metadata["total_size"] = sum(sizes[name] for name in stored)
    return _dumped(content, old)


def _weight_map(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: checkpoint.tensors[name].shard for name in sorted(checkpoint.tensors) if _counts(checkpoint, name)}


def _counts(checkpoint: Checkpoint, name: str) -> bool:
    return checkpoint.tensors[name].shard in _used(checkpoint)


def _used(checkpoint: Checkpoint) -> list[str]:
    """The shards that belong to the model: all but strays and those of another index."""
    named = checkpoint.index.shards() if checkpoint.index else set()
    apart = {name for index in checkpoint.other_indices for name in index.shards()} - named
    return [name for name in checkpoint.shards if name not in apart and name not in checkpoint.stray]


def _dumped(content: dict[str, Any], old: str) -> str:
    """The content as JSON, with the indentation, separators, escapes and end of the old text."""
    lines = old.splitlines()
    indent: int | str | None = 2
    if old:
        lead = lines[1][: len(lines[1]) - len(lines[1].lstrip())] if len(lines) > 1 else ""
        indent = lead or None
    separators = None if indent else (",", ":") if '": ' not in old else (", ", ": ")
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=old.isascii())
    return text + ("\n" if old.endswith("\n") or not old else "")
