"""Imports go down: quant < auditor < repair < reports < reports.cli; heavy packages wait until they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["quant", "auditor", "repair", "reports", "reports.cli"]
HEAVY = {"torch", "triton", "numba", "pandas", "pyarrow", "transformers", "jsonschema"}
# Where a package is imported at the top of a file: kernels, and what exists to hand out that package's types.
ALLOWED = {
    "torch": ("/cuda", "quant/torch_api.py"),
    "triton": ("/cuda",),
    "numba": ("/cpu",),
    "pandas": ("reports/tables.py",),
}
FILES = sorted(path for room in ROOMS[:-1] for path in (ROOT / room).rglob("*.py"))


def imports(tree: ast.AST, top: bool) -> Iterator[str]:
    """Modules imported anywhere, or at the top only (conditions included, functions and type checking apart)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
        elif top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and top):
            yield from imports(node, top)


def room(module: str) -> int:
    """The height of a module's room, -1 for what is none of ours."""
    return max((i for i, r in enumerate(ROOMS) if module == r or module.startswith(r + ".")), default=-1)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").as_posix()
    tree = ast.parse(path.read_text())
    for module in imports(tree, top=False):
        assert room(module) <= room(here.replace("/", ".")), f"{here} imports {module}"
        assert module.split(".")[0] != "tests", f"{here} imports {module}"
    for module in imports(tree, top=True):
        package = module.split(".")[0]
        places = ALLOWED.get(package, ())
        assert package not in HEAVY or any(place in f"{here}.py" for place in places), f"{here} imports {module}"


def test_a_scan_imports_nothing_heavy() -> None:
    script = f"import sys, auditor, auditor.engine; auditor.scan(sys.argv[1]); print({HEAVY} & sys.modules.keys())"
    corpus = ROOT / "tests" / "data" / "corpus" / "llama_nvfp4_nan_cases"
    ran = subprocess.run([sys.executable, "-c", script, str(corpus)], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()", ran.stdout + ran.stderr
