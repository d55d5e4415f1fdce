"""One door: what writes goes through `repair.osfs`, and outside this room nothing but reports is written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOOR = "repair/osfs.py"
REPORTS = {  # what a report, a demonstration or a closed pipe needs
    "reports/output.py",
    "reports/demo.py",
    "reports/cli/demo.py",
    "reports/cli/guard.py",
}
OS = {  # of os: what changes something, or may
    "open", "write", "pwrite", "pwritev", "writev", "rename", "replace", "renames", "unlink", "remove", "rmdir",
    "removedirs", "mkdir", "makedirs", "link", "symlink", "chmod", "fchmod", "lchmod", "chown", "fchown", "lchown",
    "truncate", "ftruncate", "utime", "copy_file_range", "sendfile", "mkfifo", "mknod", "fdopen", "posix_fallocate",
    "setxattr", "removexattr", "system", "popen",
}  # fmt: skip
PATH = {"write_text", "write_bytes", "touch", "unlink", "mkdir", "rmdir", "symlink_to", "hardlink_to", "chmod",
        "tofile", "savez", "save_file", "memmap", "copy_into", "move_into"}  # fmt: skip
MODULES = {"shutil", "tempfile", "fcntl", "mmap", "fileinput", "io", "sqlite3", "dbm", "shelve", "subprocess"}
READ_ONLY = {("auditor/source.py", "open")}  # O_RDONLY


def sources(*rooms: str) -> list[str]:
    return [str(p.relative_to(ROOT)) for room in rooms for p in sorted((ROOT / room).rglob("*.py"))]


def writes(source: str, text: str) -> list[str]:
    """Every expression that could write, with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        what = _import(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
        if isinstance(node, ast.Attribute):
            what = _attribute(source, node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            what = _open(node.args[1:2], node.keywords)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "open":
            what = "" if _of(node.func.value) == "os" else _open(node.args[:1], node.keywords)
        if what:
            found.append(f"line {node.lineno}: {what}")
    return found


def _import(node: ast.Import | ast.ImportFrom) -> str:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.module == "os" and set(names) & OS:
            return f"from os import {', '.join(names)}"
        names = [node.module or ""]
    return next((f"imports {name}" for name in names if name.split(".")[0] in MODULES), "")


def _attribute(source: str, node: ast.Attribute) -> str:
    of = _of(node.value)
    if of == "os" and node.attr in OS and (source, node.attr) not in READ_ONLY:
        return f"os.{node.attr}"
    if node.attr in PATH and of not in ("fs", "os"):
        return f"{of}.{node.attr}"
    return ""


def _open(mode: list[ast.expr], keywords: list[ast.keyword]) -> str:
    mode = mode or [k.value for k in keywords if k.arg == "mode"]
    if not mode:
        return ""
    if isinstance(mode[0], ast.Constant) and isinstance(mode[0].value, str):
        return f"open(..., {mode[0].value!r})" if set(mode[0].value) & set("wax+") else ""
    return ""


def _of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else "?"


@pytest.mark.parametrize("source", sources("repair", "auditor", "quant", "reports"))
def test_no_write_but_through_the_door(source):
    if source == DOOR or source in REPORTS:
        pytest.skip("the door itself" if source == DOOR else "writes reports")
    modules = [found for found in writes(source, (ROOT / source).read_text()) if _counts(source, found)]
    assert modules == []


def _counts(source: str, found: str) -> bool:
    """Outside the room some modules are fine: they are not used to write files of a checkpoint."""
    return "imports" not in found or source.startswith("repair/")


@pytest.mark.parametrize(
    "text",
    [
        "open('x', 'w')",
        "open('x', mode='r+b')",
        "path.open('ab')",
        "import os\nos.write(1, b'')",
        "from os import pwrite",
        "path.write_text('x')",
        "(path / 'x').unlink()",
        "import shutil",
        "array.tofile('x')",
        "np.memmap('x', mode='r+')",
    ],
)
def test_the_test_sees_a_write(text):
    assert writes("repair/x.py", text)
