"""A shard with another header: other dtypes, shapes, sizes, new tensors; written to a new file, never in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from auditor.header import parse, stored_size
from quant.errors import RepairError
from repair.content import Content, length_of, pieces
from repair.handle import Handle, naming
from repair.osfs import REAL, Fs
from repair.patch import read_state
from repair.shardheader import Entry, header_bytes


class New(NamedTuple):
    """A tensor that the shard did not have."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Content


class Change(NamedTuple):
    """What becomes of one tensor; None leaves that part as it is.  ``beside``: new tensors right behind it."""

    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    content: Content | None = None
    beside: tuple[New, ...] = ()


class _Piece(NamedTuple):
    """One tensor of the new file: its entry, and where its bytes come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # absolute, in the source
    length: int
    content: Content | None

    @property
    def size(self) -> int:
        return self.length if self.content is None else length_of(self.content)


def rewrite_shard(source: Path, target: Path, changes: Mapping[str, Change], fs: Fs = REAL) -> int:
    """Write ``target``, a new file: ``source`` with these tensors changed; the size of the new file.

    Tensors keep the order of their bytes, metadata is kept as it is.  RepairError when the source's header
    breaks a rule of the format, a tensor is not there, or a change does not fit its dtype and shape.
    """
    with Handle.reading(fs, source) as file:
        head, metadata = _pieces(file, changes)
        raw = header_bytes([Entry(p.name, p.dtype, p.shape) for p in head], metadata, file.name)
        with Handle.creating(fs, target) as made:
            made.write(0, raw)
            at = len(raw)
            for piece in head:
                if piece.content is None:
                    copy(file, made, piece.begin, at, piece.length)
                else:
                    place = at
                    for part in pieces(piece.content):
                        made.write(place, part)
                        place += len(part)
                at += piece.size
            status = file.status()
            with naming(target.name, "keeping its mode"):
                fs.keep_mode(made.fd, status.permissions, status.uid, status.gid)
            made.sync()
    return at


def _pieces(file: Handle, changes: Mapping[str, Change]) -> tuple[list[_Piece], dict[str, str]]:
    state = read_state(file)
    header = parse(file.read(0, state.data_start), file.name, state.size)
    if header.problems:
        raise RepairError(f"{file.name}: cannot be rewritten: {header.problems[0].message}")
    known = {ref.name for ref in header.tensors}
    if missing := sorted(set(changes) - known):
        raise RepairError(f"{file.name}: has no tensor {missing[0][:200]}")
    found = []
    for ref in sorted(header.tensors, key=lambda ref: (ref.start, ref.nbytes)):
        change = changes.get(ref.name, Change())
        dtype = ref.dtype if change.dtype is None else change.dtype
        shape = ref.shape if change.shape is None else change.shape
        found.append(_Piece(ref.name, dtype, tuple(shape), ref.start, ref.nbytes, change.content))
        for new in change.beside:
            found.append(_Piece(new.name, new.dtype, tuple(new.shape), 0, 0, new.content))
    for piece in found:
        needs = stored_size(piece.dtype, piece.shape)
        if needs != piece.size:
            due = f"{piece.dtype} {list(piece.shape)} needs {needs} bytes, {piece.size} given"
            raise RepairError(f"{file.name}: {piece.name[:200]}: {needs if isinstance(needs, str) else due}")
    return found, header.metadata


def copy(source: Handle, target: Handle, offset: int, at: int, length: int) -> None:
    """Copy a range between files, in the kernel where it can; RepairError when the source ends before."""
    done = 0
    with naming(target.name, f"copying from {source.name}"):
        while done < length:
            taken = source.fs.copy_range(source.fd, target.fd, min(length - done, 1 << 30), offset + done, at + done)
            if taken <= 0:
                raise RepairError(f"{source.name}: ends at offset {offset + done} while it was copied")
            done += taken
