"""Is the plan still true?  Every old byte is compared before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from quant.errors import RepairError
from repair.content import PIECE, Mapped, Stored, piece_of, spans
from repair.frame import MAPPED, PATCH, TEXT, Record
from repair.handle import Handle
from repair.osfs import Fs
from repair.patch import MAX_TEXT, FileState, Patch, Plan, TextPatch, read_state
from repair.refusals import ChangedError, refuse_file

_SHOWN = 8  # bytes of a difference in a message
Sink = Callable[[Record], None]


@dataclass
class Verdict:
    """What the files hold: all the old bytes, all the new ones, or neither."""

    old: str = ""  # why not all old bytes are there; "" when they are
    new: bool = True
    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # shard -> device and inode that were read
    notes: list[str] = field(default_factory=list)

    def differ(self, why: str) -> None:
        """Keep the first difference from the old bytes; with one from the new bytes too, it is all over."""
        self.old = self.old or why
        self.settle()

    def settle(self) -> None:
        """Raise ChangedError when the files hold neither."""
        if self.old and not self.new:
            raise ChangedError(self.old)


def compare(fs: Fs, root: Path, plan: Plan, sink: Sink | None = None) -> Verdict:
    """Compare the plan with the files, handing ``sink`` every range with the bytes found there.

    Raises ChangedError, naming file and offset, unless all old bytes or all new bytes are there.
    """
    verdict = Verdict()
    subjects = {name: number for number, name in enumerate([*plan.files, *(t.file for t in plan.texts)])}
    for name, patches in groupby(plan.patches, key=lambda patch: patch.file):
        path = root / name
        if refuse_file(fs, path) is None:
            raise ChangedError(f"{name}: is not there any more")
        with Handle.writing(fs, path) as file:
            status = file.status()
            verdict.places[name] = (status.device, status.inode)
            if expect_state(file, plan.files[name]):
                verdict.notes.append(f"{name}: touched since the plan was made; its old bytes are all there")
            for patch in patches:
                _compare_patch(file, patch, subjects[name], verdict, sink)
    for text in plan.texts:
        _compare_text(fs, root, text, subjects[text.file], verdict, sink)
    return verdict


def expect_state(file: Handle, state: FileState, error: type[RepairError] = ChangedError) -> bool:
    """Raise unless size and header are the plan's; True when only the time of the last change differs."""
    size = file.status().size
    if size != state.size:
        raise error(f"{file.name}: holds {size} bytes, {state.size} when the plan was made")
    now = read_state(file)
    if (now.data_start, now.header_sha256) != (state.data_start, state.header_sha256):
        raise error(f"{file.name}: its header is not the one the plan was made for")
    return now.mtime_ns != state.mtime_ns


def _compare_patch(file: Handle, patch: Patch, subject: int, verdict: Verdict, sink: Sink | None) -> None:
    by_hash = isinstance(patch.old, Stored) and bool(patch.old.sha256)
    table = patch.new.table if isinstance(patch.new, Mapped) and patch.new.old is patch.old else None
    alone, sha = patch.length <= PIECE, hashlib.sha256()  # of one piece the digest is that of the patch
    for start, length in spans(patch.length):
        found = file.read(patch.offset + start, length)
        digest = hashlib.sha256(found).digest() if by_hash or sink is not None else b""
        new = None
        if table is None or verdict.new:  # else nobody asks for them: the table stands for them
            new = piece_of(patch.new, start, length)
            verdict.new = verdict.new and found == new
        if by_hash:
            if not alone:
                sha.update(found)
        elif found != (old := piece_of(patch.old, start, length)):
            verdict.differ(_difference(patch, start, found, old))
        verdict.settle()
        if sink is not None and not verdict.old:
            kind = PATCH if table is None else MAPPED
            sink(Record(kind, subject, patch.offset + start, found, new, patch.tensor, patch.rule, table, digest))
    whole = digest.hex() if alone else sha.hexdigest()
    if by_hash and isinstance(patch.old, Stored) and whole != patch.old.sha256:
        verdict.differ(f"{patch.file}: {patch.tensor}: bytes {patch.offset}..{patch.end} changed since the plan")


def _difference(patch: Patch, start: int, found: bytes, old: bytes) -> str:
    at = next(place for place, (a, b) in enumerate(zip(found, old, strict=True)) if a != b)
    there, due = (raw[at : at + _SHOWN].hex().upper() for raw in (found, old))
    where = f"{patch.file}: {patch.tensor}: offset {patch.offset + start + at}"
    return f"{where}: found 0x{there}, the plan expects 0x{due}"


def _compare_text(fs: Fs, root: Path, text: TextPatch, subject: int, verdict: Verdict, sink: Sink | None) -> None:
    found = read_text(fs, root / text.file)
    verdict.new = verdict.new and found == text.new
    if found != text.old:
        what = "is not there" if found is None else "is there" if text.old is None else "holds other content"
        verdict.differ(f"{text.file}: {what}: it changed since the plan was made")
    verdict.settle()
    if sink is not None and not verdict.old:
        sink(Record(TEXT, subject, 0, text.old, text.new, "", text.rule))


def read_text(fs: Fs, path: Path) -> bytes | None:
    """A small file, None when it is not there; raises when it may not be replaced in place."""
    status = refuse_file(fs, path)
    if status is None:
        return None
    if status.size > MAX_TEXT:
        raise ChangedError(f"{path.name}: {status.size} bytes are too many for a text file")
    with Handle.reading(fs, path) as file:
        return file.read(0, file.status().size)
