"""What lies beside the weights, tokenizer and code and notes: carried over into a new checkpoint as it is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from auditor.checkpoint import INDEX_SUFFIX
from repair.handle import naming
from repair.osfs import Fs
from repair.outofplace import clone_or_copy
from repair.walking import walk

# Weights in whatever form: a second copy of what is being made anew would be the old one.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", INDEX_SUFFIX,
            ".bin.index.json")  # fmt: skip
_PART = ".part"


@dataclass
class Carried:
    """What became of the source's other files."""

    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # with the reason


def carry(fs: Fs, root: Path, work: Path, made: Container[str]) -> Carried:
    """Copy every file of ``root`` that holds no weights and is not ``made`` anew into ``work``, synced.

    A file that is there already is replaced.  RepairError when one cannot be read or written.
    """
    done = Carried()
    folders = {work}
    for path in sorted(walk(fs, root, done.left_out)):
        name = str(path)
        if name in made:
            continue
        if name.endswith(_WEIGHTS):
            done.left_out.append(f"{name}: weights, or an index of them, that were not read")
            continue
        _folder(fs, (work / path).parent, folders)
        part = work / (name + _PART)
        if fs.status(part) is not None:
            with naming(part.name, "cannot be removed"):
                fs.unlink(part)
        clone_or_copy(fs, root / path, part)
        with naming(name, "cannot be given its name"):
            fs.rename(part, work / path)
        done.files.append(name)
    for folder in sorted(folders, reverse=True):
        with naming(folder.name, "could not be written to the disk"):
            fs.fsync_folder(folder)
    return done


def _folder(fs: Fs, path: Path, known: set[Path]) -> None:
    if path in known:
        return
    _folder(fs, path.parent, known)
    if fs.status(path) is None:
        with naming(path.name, "cannot be made"):
            fs.mkdir(path)
    known.add(path)
