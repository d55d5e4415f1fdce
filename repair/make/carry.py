"""What lies beside the weights, tokenizer and code and notes: carried over into a new checkpoint as it is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from auditor.checkpoint import INDEX_SUFFIX
from repair.handle import naming
from repair.make.notes import PART, RESERVED
from repair.osfs import Fs
from repair.outofplace import clone_or_copy
from repair.walking import LeftOut, walk

# Weights in whatever form: a second copy of what is being made anew would be the old one.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", INDEX_SUFFIX,
            ".bin.index.json")  # fmt: skip


@dataclass
class Carried:
    """What becomes of the source's other files."""

    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # with the reason
    nbytes: int = 0


def to_carry(fs: Fs, root: Path, made: Container[str]) -> Carried:
    """Every file of ``root`` that holds no weights and is not ``made`` anew.

    A folder with weights of its own (a second copy: ``original``, ``onnx``) is left out whole: its configuration
    would speak of weights that are not there.  RepairError when something cannot be looked at.
    """
    found = Carried()
    passed: list[LeftOut] = []
    paths = [path for path in sorted(walk(fs, root, passed)) if str(path) not in made]
    found.left_out += map(str, passed)
    apart = {path.parent for path in paths if path.parts[1:] and path.name.endswith(_WEIGHTS)}
    found.left_out += [f"{folder}: holds weights that were not read" for folder in sorted(apart)]
    for path in paths:
        name = str(path)
        if not apart.isdisjoint(path.parents):
            continue
        if name.endswith(_WEIGHTS):
            found.left_out.append(f"{name}: weights, or an index of them, that were not read")
        elif name.startswith(RESERVED):
            found.left_out.append(f"{name}: the name is kept for unfinished checkpoints")
        else:
            with naming(name, "cannot be looked at"):
                status = fs.status(root / path, follow=True)
            found.files.append(name)
            found.nbytes += status.size if status else 0
    return found


def carry(fs: Fs, root: Path, work: Path, names: list[str]) -> None:
    """Copy these files of ``root`` into ``work``, synced; what is there already is replaced.

    RepairError when one cannot be read or written.
    """
    folders = {work}
    for name in names:
        target = work / name
        _folder(fs, target.parent, folders)
        part = work / PART
        with naming(PART, "cannot be removed"):
            if fs.status(part) is not None:
                fs.unlink(part)
        clone_or_copy(fs, root / name, part)
        with naming(name, "cannot be given its name"):
            fs.rename(part, target)
    for folder in sorted(folders, reverse=True):
        with naming(folder.name, "could not be written to the disk"):
            fs.fsync_folder(folder)


def _folder(fs: Fs, path: Path, known: set[Path]) -> None:
    if path in known:
        return
    _folder(fs, path.parent, known)
    with naming(path.name, "cannot be made"):
        if fs.status(path) is None:
            fs.mkdir(path)
    known.add(path)
