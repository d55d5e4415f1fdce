"""Proof that only planned bytes changed."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from quant.errors import RepairError
from repair.frame import Record
from repair.handle import Handle
from repair.inplace import Side, holds
from repair.journal import Journal
from repair.ledger import Ledger
from repair.osfs import Fs
from repair.patch import Patch, Plan
from repair.wording import plural

_CHUNK = 4 << 20


class Proof(enum.Enum):
    """How much is read again before a repair is marked complete."""

    RANGES = "ranges"  # patched ranges, sizes, headers and modes
    FULL = "full"  # and a hash of every other byte, taken before and after


def outside(fs: Fs, root: Path, plan: Plan) -> dict[str, str]:
    """Per patched shard: sha256 of every byte that the plan leaves alone."""
    hashes = {}
    for name, patches in groupby(plan.patches, key=lambda patch: patch.file):
        with Handle.reading(fs, root / name) as file:
            hashes[name] = _hash(file, _gaps(patches, file.status().size))
    return hashes


def _gaps(patches: Iterable[Patch], size: int) -> Iterator[tuple[int, int]]:
    at = 0
    for patch in patches:
        yield at, patch.offset
        at = patch.end
    yield at, size


def _hash(file: Handle, gaps: Iterable[tuple[int, int]]) -> str:
    sha = hashlib.sha256()
    for start, end in gaps:
        for at in range(start, end, _CHUNK):
            sha.update(file.read(at, min(_CHUNK, end - at)))
    return sha.hexdigest()


def after(
    ledger: Ledger,
    journal: Journal,
    plan: Plan,
    before: dict[str, str],
    proof: Proof,
    ready: Sequence[Record] | None = None,
) -> str:
    """What was proven, in words; RepairError when a planned byte is not there or another one changed."""
    if why := holds(ledger, journal, Side.NEW, ready):
        raise RepairError(f"what was written is not there: {why}")
    shown = f"{plural(journal.count, 'range')} read back"
    if proof is Proof.RANGES:
        return f"{shown}; sizes, headers and permissions are as before"
    now = outside(ledger.fs, ledger.root, plan)
    if changed := sorted(name for name in before if now[name] != before[name]):
        raise RepairError(f"{changed[0]}: bytes that the plan leaves alone changed during the repair")
    nbytes = sum(state.size for state in plan.files.values()) - plan.nbytes
    return f"{shown}; all other bytes ({nbytes}) of {plural(len(now), 'file')} hash as before"
