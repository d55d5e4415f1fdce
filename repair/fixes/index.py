"""FIL106, FIL107, FIL108, FIL110, FIL114: the index, rebuilt from the shards' headers in the form it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from auditor.checkpoint import INDEX_SUFFIX, Checkpoint
from auditor.finding import Finding, Safety
from auditor.jsonfile import table
from repair.content import length_of
from repair.fixes import jsontext
from repair.fixes.desk import Desk
from repair.fixes.proposal import Left, NewTensor, Proposal, TextEdit

_REASON = "what each shard holds is in its header"


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """One new index for all findings about it."""
    if finding.fix is None:
        reason = "in no shard that a loader reads: the export has to be repeated, or the file that holds it named"
        yield Left(finding.code, finding.tensor, reason)
        return
    if ("index", "") in desk.done:
        return
    checkpoint, stored = desk.ctx.checkpoint, _stored(desk.ctx.checkpoint)
    named = checkpoint.index.weight_map if checkpoint.index else {}
    lost = any(file in checkpoint.missing and name not in stored for name, file in named.items())
    if lost or checkpoint.unopened or any(s.header.refused for s in checkpoint.shards.values()):
        yield Left(finding.code, finding.tensor, "a shard is missing or cannot be read: its tensors are not known")
        return
    desk.done.add(("index", ""))
    file = index_file(checkpoint)
    change = f"{file}: {len(stored)} tensors in {len(set(stored.values()))} shards"
    edit = TextEdit(file, rebuilt(desk.text(file), checkpoint, {}).encode())
    yield Proposal(finding.code, finding.tensor, Safety.EXACT, _REASON, finding.count, change, (edit,))


def index_file(checkpoint: Checkpoint) -> str:
    """The index that loaders read, or will."""
    return checkpoint.index.file if checkpoint.index else "model" + INDEX_SUFFIX


def rebuilt(old: str, checkpoint: Checkpoint, changed: Mapping[str, NewTensor]) -> str:
    """The index as text: entries in the order they had, everything else as it was written.

    ``changed``: tensors that will be added or have another size, by name.  Entries of what no shard holds stay.
    """
    stored = _stored(checkpoint) | {t.name: t.like.shard for t in changed.values() if t.beside}
    sizes = {name: ref.nbytes for name, ref in checkpoint.tensors.items()}
    sizes |= {name: length_of(t.content) for name, t in changed.items()}
    total = sum(sizes[name] for name in stored)
    if not old:
        return json.dumps({"metadata": {"total_size": total}, "weight_map": stored}, indent=2) + "\n"
    content = json.loads(old.removeprefix("\ufeff"))
    before = table(content.get("weight_map"))
    entries = {name: stored.get(name, file) for name, file in before.items()} | stored
    if list(before) == sorted(before):
        entries = dict(sorted(entries.items()))
    text = jsontext.put_table(old, ("weight_map",), entries)
    if "total_size" in table(content.get("metadata")):
        text = jsontext.put(text, ("metadata", "total_size"), total)
    return text


def _stored(checkpoint: Checkpoint) -> dict[str, str]:
    """By tensor, sorted, the shard that a loader has to read for it."""
    ours = checkpoint.ours()
    return {name: ref.shard for name, ref in sorted(checkpoint.tensors.items()) if ref.shard in ours}
