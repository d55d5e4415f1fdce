"""What to do about a checkpoint that cannot be read, where that can be told from its name or its files."""

from __future__ import annotations

import os
import re

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash left
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def hint(path: str) -> str:
    """What to try instead of ``path``, to stand behind an error; "" when nothing is known."""
    if _URL.match(path):
        return "; checkpoints are read from the disk: download it first"
    if not os.path.lexists(path):
        if not _HUB.fullmatch(path):
            return ""
        name, _, revision = path.partition("@")
        more = f" --revision {revision}" if revision else ""
        return f"; if that is its name on the hub, download it first: hf download {name}{more} --local-dir DIR"
    names = [path]
    if os.path.isdir(path):
        try:
            names = os.listdir(path)
        except OSError:
            return ""
    names = [name.lower() for name in names]
    if any(name.endswith(".safetensors") for name in names):
        return ""
    if any(name.endswith(".gguf") for name in names):
        return "; GGUF is not read: audit the safetensors that it was made from"
    if any(name.endswith(_PICKLED) for name in names):
        return "; pickled weights (.bin, .pt) are never loaded: save the model as safetensors first"
    return ""
