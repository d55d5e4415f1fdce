"""Nothing in quant, auditor and repair casts with a framework's float8; heavy libraries load where first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for room in ("quant", "auditor", "repair") for p in (ROOT / room).rglob("*.py"))
CASTS = {
    "to",
    "astype",
    "type",
    "cast",
    "convert",
    "asarray",
    "array",
    "tensor",
    "as_tensor",
    "full",
    "empty",
    "float8e4nv",
}


def casts(tree: ast.AST) -> list[int]:
    """Lines where an 8- or 4-bit float type of a framework is the target of a cast or of a new array."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith(("float8", "float4")):
            lines.append(node.lineno)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            lines += [node.lineno for module in modules if module.split(".")[0] in {"ml_dtypes", "torchao"}]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CASTS:
            words = [a.value for a in ast.walk(node) if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            lines += [node.lineno for word in words if word.startswith(("float8", "float4"))]
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_cast_to_a_frameworks_float8(path):
    assert casts(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "x.to(torch.float8_e4m3fn)",
        "y = x.astype(ml.float8_e4m3fn)",
        "x.to('float8_e4m3fn')",
        "tl.cast(x, tl.float8e4nv)",
        "import ml_dtypes",
        "from ml_dtypes import bfloat16",
    ],
)
def test_the_scan_sees_a_cast(line):
    assert casts(ast.parse(line)) == [1]


def test_there_is_something_to_scan():
    assert len(FILES) > 20


@pytest.mark.parametrize("module", ["codes", "cast", "scheme", "nvfp4", "mx", "fp8", "mx_to_nv", "metrics", "sweep"])
def test_heavy_libraries_load_where_they_are_first_used(module):
    code = f"import sys, quant.{module}; print([m for m in ('numba', 'torch', 'triton', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_quant_imports_nothing_of_the_rooms_above():
    for path in sorted((ROOT / "quant").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {n.split(".")[0] for n in names} & {"auditor", "repair", "reports", "tests"}, path
