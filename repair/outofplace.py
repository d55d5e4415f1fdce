"""A repaired copy in a new folder; the original is opened for reading only.

The copy grows in a folder beside it whose name ends in ``.incomplete``, and gets its own name when every byte is
on the disk: a folder with the name that was asked for is whole.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from quant.errors import RepairError
from repair.compare import expect_state
from repair.content import Stored, piece_of, spans
from repair.handle import Handle, naming
from repair.osfs import REAL, Fs
from repair.patch import Patch, Plan
from repair.refusals import ChangedError
from repair.rewrite import Change, copy, rewrite_shard
from repair.walking import LeftOut, Why, walk

INCOMPLETE = ".incomplete"


@dataclass
class Copied:
    """How each file came into the copy."""

    folder: Path
    cloned: list[str] = field(default_factory=list)  # blocks shared copy-on-write
    linked: list[str] = field(default_factory=list)  # hard links to the original
    copied: list[str] = field(default_factory=list)
    patched: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def repaired_copy(
    root: Path,
    plan: Plan,
    out: Path,
    rewrites: Mapping[str, Mapping[str, Change]] | None = None,
    link: bool = False,
    fs: Fs = REAL,
) -> Copied:
    """Carry out a plan in a copy of the checkpoint at ``out``, which must not exist.

    ``rewrites``: shard -> tensor -> Change, done after the shard's patches.  ``link``: hard-link the files that
    do not change, where that can be done; such files must not be patched in place later, and are refused.
    Raises RepairError, leaving the unfinished folder, when a file is not what the plan was made for.
    """
    rewrites = rewrites or {}
    work = out.with_name(out.name + INCOMPLETE)
    if fs.status(out) is not None:
        raise RepairError(f"{out}: is there already; choose another name or remove it")
    if fs.status(work) is not None:
        left = "left by a copy that failed, or is being made at this moment"
        raise RepairError(f"{work}: is there already, {left}; it is no checkpoint and may be removed")
    resolved, source = fs.resolve(work), fs.resolve(root)
    if source in resolved.parents:
        raise RepairError(f"{out}: lies inside the checkpoint it would copy")
    _expect(fs, root, plan)
    done = Copied(out)
    paths = list(walk(fs, root, done.left_out))
    _expect_copyable(fs, root, done.left_out)
    with naming(out.name, "cannot be made"):
        fs.mkdir(work)
    patches: dict[str, list[Patch]] = defaultdict(list)
    for patch in plan.patches:
        patches[patch.file].append(patch)
    texts = {text.file: text for text in plan.texts}
    seen = set()
    for path in paths:
        name = str(path)
        seen.add(name)
        if name in texts:
            continue
        _one(fs, root / path, work / path, name, patches.get(name), rewrites.get(name), plan, link, done)
    if missing := sorted((set(patches) | set(rewrites)) - seen):
        raise ChangedError(f"{missing[0]}: is not there any more")
    _texts(fs, root, work, plan, done)
    _finish(fs, work, out)
    return done


def _one(
    fs: Fs,
    source: Path,
    target: Path,
    name: str,
    patches: list[Patch] | None,
    changes: Mapping[str, Change] | None,
    plan: Plan,
    link: bool,
    done: Copied,
) -> None:
    _folders(fs, target.parent)
    if patches is None and changes is None:
        _unchanged(fs, source, target, name, link, done)
        return
    if patches is None and changes is not None:
        rewrite_shard(source, target, changes, fs)
        done.rewritten.append(name)
        return
    first = target if changes is None else target.with_name(target.name + ".patched")
    clone_or_copy(fs, source, first)
    with Handle.writing(fs, first) as file:
        expect_state(file, plan.files[name])
        for patch in patches or ():
            _patch(file, patch)
        file.sync()
    done.patched.append(name)
    if changes is not None:
        rewrite_shard(first, target, changes, fs)
        with naming(name, "cannot be tidied"):
            fs.unlink(first)
        done.rewritten.append(name)


def _patch(file: Handle, patch: Patch) -> None:
    _expect_old(file, patch)
    for start, length in spans(patch.length):
        file.write(patch.offset + start, piece_of(patch.new, start, length))


def _expect_old(file: Handle, patch: Patch) -> None:
    if isinstance(patch.old, Stored) and patch.old.sha256:
        if patch.old.sha256 != _hash(file, patch):
            raise ChangedError(f"{file.name}: {patch.tensor}: offset {patch.offset}: changed since the plan was made")
    else:
        for start, length in spans(patch.length):
            if file.read(patch.offset + start, length) != piece_of(patch.old, start, length):
                raise ChangedError(f"{file.name}: {patch.tensor}: offset {patch.offset + start}: not the old bytes")


def _expect(fs: Fs, root: Path, plan: Plan) -> None:
    """Before gigabytes are copied; the copy is compared again."""
    for name, patches in groupby(plan.patches, key=lambda patch: patch.file):
        if fs.status(root / name, follow=True) is None:
            raise ChangedError(f"{name}: is not there any more")
        with Handle.reading(fs, root / name) as file:
            expect_state(file, plan.files[name])
            for patch in patches:
                _expect_old(file, patch)


def _expect_copyable(fs: Fs, root: Path, left_out: list[LeftOut]) -> None:
    """RepairError for what is no file but may stand for one: a link that leads nowhere, a pipe, a device."""
    for path, why in left_out:
        if why is not Why.APART and not _is_folder(fs, root / path):
            raise RepairError(f"{path}: {why.value}: a copy without it would be another checkpoint")


def _is_folder(fs: Fs, path: Path) -> bool:
    try:
        status = fs.status(path, follow=True)
    except OSError:
        return False
    return status is not None and status.is_folder


def _hash(file: Handle, patch: Patch) -> str:
    sha = hashlib.sha256()
    for start, length in spans(patch.length):
        sha.update(file.read(patch.offset + start, length))
    return sha.hexdigest()


def _unchanged(fs: Fs, source: Path, target: Path, name: str, link: bool, done: Copied) -> None:
    if link:
        try:
            fs.link(fs.resolve(source), target)
        except OSError:  # another file system, or one without links: copied below
            pass
        else:
            done.linked.append(name)
            return
    (done.cloned if clone_or_copy(fs, source, target) else done.copied).append(name)


def clone_or_copy(fs: Fs, source: Path, target: Path) -> bool:
    """A new file with the bytes and mode of ``source``, synced; True when its blocks are shared."""
    with Handle.reading(fs, source) as file, Handle.creating(fs, target) as made:
        status = file.status()
        with naming(target.name, f"copying from {source.name}"):
            cloned = fs.clone(file.fd, made.fd)
        if not cloned:
            copy(file, made, 0, 0, status.size)
        with naming(target.name, "keeping its mode"):
            fs.keep_mode(made.fd, status.permissions | 0o200, status.uid, status.gid)
        made.sync()
    return cloned


def _texts(fs: Fs, root: Path, work: Path, plan: Plan, done: Copied) -> None:
    for text in plan.texts:
        source = root / text.file
        status = fs.status(source, follow=True)
        found = None
        if status is not None:
            with Handle.reading(fs, source) as file:
                found = file.read(0, file.status().size)
        if found != text.old:
            raise ChangedError(f"{text.file}: changed since the plan was made")
        if text.new is None:
            continue
        with Handle.creating(fs, work / text.file) as file:
            file.write(0, text.new)
            if status is not None:
                with naming(text.file, "keeping its mode"):
                    fs.keep_mode(file.fd, status.permissions | 0o200, status.uid, status.gid)
            file.sync()
        done.patched.append(text.file)


def _folders(fs: Fs, path: Path) -> None:
    if fs.status(path) is None:
        _folders(fs, path.parent)
        with naming(path.name, "cannot be made"):
            fs.mkdir(path)


def _finish(fs: Fs, work: Path, out: Path) -> None:
    """Sync every folder, then give the copy its name."""
    waiting = [work]
    while waiting:
        folder = waiting.pop()
        with naming(folder.name, "could not be written to the disk"):
            fs.fsync_folder(folder)
            for name in fs.listdir(folder):
                status = fs.status(folder / name)
                if status is not None and status.is_folder:
                    waiting.append(folder / name)
    with naming(out.name, "cannot be given its name"):
        fs.rename(work, out)
        fs.fsync_folder(out.parent)
