"""A repair as data: which bytes of which files become which, by what rule, and what is left alone and why."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from auditor.checkpoint import SUFFIX, is_file_name
from auditor.finding import Safety
from auditor.header import header_length
from auditor.jsonfile import MAX_INDEX
from quant.errors import RepairError
from repair.content import Content, Mapped, Stored, digest, length_of
from repair.handle import Handle
from repair.osfs import REAL, Fs

MAX_TEXT = MAX_INDEX  # bytes; text files are held in memory


class Patch(NamedTuple):
    """A range of one shard: ``old`` becomes ``new``, which is as long.  ``offset`` is absolute in the file."""

    file: str
    offset: int
    old: Content
    new: Content
    tensor: str
    rule: str
    reason: str = ""
    safety: Safety = Safety.EXACT

    @property
    def length(self) -> int:
        """Number of bytes."""
        return length_of(self.new)

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.length


class TextPatch(NamedTuple):
    """A small text file, replaced as a whole; None means that the file is not there (before, or after)."""

    file: str
    old: bytes | None
    new: bytes | None
    rule: str
    reason: str = ""
    safety: Safety = Safety.EXACT


class Skipped(NamedTuple):
    """A finding that the plan leaves alone, and why.  Never silence."""

    code: str
    tensor: str
    reason: str


class FileState(NamedTuple):
    """What a shard was when the plan was made.

    ``header_sha256``: of its first ``data_start`` bytes, the length included.  ``mtime_ns`` is for people: a
    touched file whose size, header and old bytes are the plan's is not refused.
    """

    size: int
    mtime_ns: int
    header_sha256: str
    data_start: int


@dataclass(frozen=True)
class Plan:
    """Patches, text files and what is skipped; ``files`` has the state of every patched shard.

    Sorted and disjoint: RepairError otherwise, naming the entry, so that every Plan there is can be carried out.
    """

    patches: tuple[Patch, ...] = ()
    texts: tuple[TextPatch, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    files: Mapping[str, FileState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patches", tuple(sorted(self.patches, key=lambda p: (p.file, p.offset, p.end))))
        object.__setattr__(self, "texts", tuple(sorted(self.texts, key=lambda t: t.file)))
        object.__setattr__(self, "files", dict(sorted(self.files.items())))
        for name, state in self.files.items():
            _check_state(name, state)
        before: Patch | None = None
        for patch in self.patches:
            _check_patch(patch, self.files.get(patch.file), before)
            before = patch
        _check_texts(self.texts, set(self.files))

    @property
    def touched(self) -> list[str]:
        """Names of all files that change."""
        return sorted({p.file for p in self.patches} | {t.file for t in self.texts})

    @property
    def ranges(self) -> dict[str, list[tuple[int, int]]]:
        """By shard, which bytes the patches cover: [start, end), ascending, disjoint."""
        found: dict[str, list[tuple[int, int]]] = {}
        for patch in self.patches:
            found.setdefault(patch.file, []).append((patch.offset, patch.end))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes that the patches cover."""
        return sum(p.length for p in self.patches)

    @property
    def total(self) -> int:
        """Bytes that are written, texts included."""
        return self.nbytes + sum(0 if text.new is None else length_of(text.new) for text in self.texts)

    @property
    def rules(self) -> dict[str, int]:
        """Patches and texts per rule."""
        return dict(sorted(Counter([p.rule for p in self.patches] + [t.rule for t in self.texts]).items()))

    def identity(self) -> str:
        """A name for the plan: sha256 over files, places, rules and texts; lazy bytes are not read for it."""
        sha = hashlib.sha256()
        for name, state in self.files.items():
            sha.update(repr((name, state.size, state.header_sha256)).encode())
        for patch in self.patches:
            sha.update(repr((patch.file, patch.offset, patch.length, patch.tensor, patch.rule)).encode())
            if isinstance(patch.new, bytes | Mapped):
                sha.update(patch.new if isinstance(patch.new, bytes) else patch.new.table)
        for text in self.texts:
            old, new = (None if c is None else digest(c) for c in (text.old, text.new))
            sha.update(repr((text.file, old, new, text.rule)).encode())
        return sha.hexdigest()


def _check_state(name: str, state: FileState) -> None:
    if not is_file_name(name):
        raise RepairError(f"{name[:200]!r}: not a file name inside the folder")
    if not name.endswith(SUFFIX):
        raise RepairError(f"{name}: not a {SUFFIX} file: only text files can be replaced")
    if not 10 <= state.data_start <= state.size:
        raise RepairError(f"{name}: its data cannot begin at offset {state.data_start} of {state.size}")


def _check_patch(patch: Patch, state: FileState | None, before: Patch | None) -> None:
    where = f"{patch.file}: {patch.tensor[:200]}: offset {patch.offset}"
    if state is None:
        raise RepairError(f"{where}: the plan does not say what the file was")
    old, new = length_of(patch.old), length_of(patch.new)
    if old != new:
        raise RepairError(f"{where}: {old} bytes cannot become {new}: a patch keeps its length")
    if new == 0:
        raise RepairError(f"{where}: the patch has no bytes")
    if patch.offset < state.data_start:
        raise RepairError(f"{where}: lies in the header, which ends at {state.data_start}")
    if patch.end > state.size:
        raise RepairError(f"{where}: reaches to {patch.end}, past the end of the file at {state.size}")
    if before is not None and before.file == patch.file and before.end > patch.offset:
        raise RepairError(f"{where}: overlaps the patch of {before.tensor[:200]} at {before.offset}..{before.end}")
    if isinstance(patch.old, Stored) and not patch.old.sha256 and getattr(patch.old.reader, "name", "") == patch.file:
        raise RepairError(f"{where}: old bytes that lie in the shard itself need their sha256")


def _check_texts(texts: tuple[TextPatch, ...], shards: set[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        if not is_file_name(text.file) or text.file.startswith("."):
            raise RepairError(f"{text.file[:200]!r}: not a file name inside the folder")
        if text.file.endswith(SUFFIX) or text.file in shards:
            raise RepairError(f"{text.file}: a shard is patched, never replaced as text")
        if text.file in seen:
            raise RepairError(f"{text.file}: replaced twice in one plan")
        seen.add(text.file)
        if text.old is None and text.new is None:
            raise RepairError(f"{text.file}: neither old nor new content")
        for content in (text.old, text.new):
            if content is not None and len(content) > MAX_TEXT:
                raise RepairError(f"{text.file}: {len(content)} bytes are too many for a text file ({MAX_TEXT})")


def state_of(path: Path, fs: Fs = REAL) -> FileState:
    """What a shard is now; RepairError when its header's length makes no sense."""
    with Handle.reading(fs, path) as file:
        return read_state(file)


def read_state(file: Handle) -> FileState:
    """As `state_of`, of an open file."""
    status = file.status()
    if not status.is_file:
        raise RepairError(f"{file.name}: not a regular file")
    length, problem = header_length(file.read(0, min(8, status.size)), status.size)
    if problem:
        raise RepairError(f"{file.name}: {problem.message}")
    sha = hashlib.sha256()
    for start in range(0, 8 + length, 1 << 20):
        sha.update(file.read(start, min(1 << 20, 8 + length - start)))
    return FileState(status.size, status.mtime_ns, sha.hexdigest(), 8 + length)


def plan_for(
    root: Path,
    patches: Iterable[Patch],
    texts: Iterable[TextPatch] = (),
    skipped: Iterable[Skipped] = (),
    fs: Fs = REAL,
) -> Plan:
    """A Plan over the files as they are now."""
    patches = tuple(patches)
    names = {patch.file for patch in patches}
    for name in names:
        if not is_file_name(name):
            raise RepairError(f"{name[:200]!r}: not a file name inside the folder")
    files = {name: state_of(root / name, fs) for name in names}
    return Plan(patches, tuple(texts), tuple(skipped), files)
