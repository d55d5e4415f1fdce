"""`audit compare` from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.cli import app
from tests import forge

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "tests" / "data" / "exports"
SOURCE, EXPORT = str(EXPORTS / "llama_nvfp4__source"), str(EXPORTS / "llama_nvfp4")
runner = CliRunner()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("AUDIT_"):
            monkeypatch.delenv(name)


def run(*words: str, code: int = 0) -> str:
    result = runner.invoke(app, ["compare", *words])
    assert result.exit_code == code, result.output
    return result.stdout


def test_a_source_and_its_export(tmp_path):
    shown = run(SOURCE, EXPORT)
    assert "differ." in shown
    assert "Worst blocks" in shown
    told = json.loads(run(SOURCE, EXPORT, "--format", "json", "--worst", "2"))
    assert 20 < told["summary"]["sqnr"] < 21
    assert len(told["worst"]) == 2
    run(SOURCE, EXPORT, "-f", "csv", "-o", "out.csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == told["summary"]["compared"] + 1


def test_limits_decide_the_exit_code():
    run(SOURCE, EXPORT, "--min-sqnr", "20", "--max-mse", "1e-3")
    shown = run(SOURCE, EXPORT, "--min-sqnr", "30", code=1)
    assert "SQNR below 30 dB" in shown
    names = run(SOURCE, EXPORT, "--max-mse", "0", "-q", code=1).splitlines()
    assert names
    assert all(name.startswith("model.layers.") for name in names)
    run(SOURCE, SOURCE, "--max-mse", "0", "--min-sqnr", "inf")
    run(SOURCE, EXPORT, "--max-mse", "-1", code=2)
    run(SOURCE, EXPORT, "--max-mse", "nan", code=2)
    run(SOURCE, EXPORT, "--min-sqnr", "nan", code=2)


def test_what_is_left_out(tmp_path):
    run("nowhere", EXPORT, code=3)
    run(SOURCE, "nowhere", code=3)
    run(SOURCE, EXPORT, "--include", "nothing", code=3)
    integers = str(forge.make("int-gptq").write(tmp_path / "int"))
    assert "Left out" in run(integers, integers)
    run(integers, integers, "--strict", code=3)
    run(SOURCE, SOURCE, "--strict")


def test_choices():
    shown = run(SOURCE, EXPORT, "--include", "*down_proj*", "--limit", "1", "--sort", "name", "--worst", "0")
    assert "Worst" not in shown
    assert "more tensor" in shown
    told = json.loads(run(SOURCE, EXPORT, "-f", "json", "--exclude", "*proj*", "--jobs", "1"))
    assert not [t for t in told["tensors"] if "proj" in t["tensor"]]


def test_experts(tmp_path):
    fused = str(forge.make("modelopt-3d-gpt-oss").write(tmp_path / "fused"))
    told = json.loads(run(fused, fused, "--per-expert", "-f", "json"))
    assert {t["expert"] for t in told["tensors"]} == {None, 0, 1, 2}


def test_as_a_process_without_torch():
    """The command runs with nothing heavier than Numba."""
    script = (
        "import sys\n"
        "from reports.cli import app\n"
        "try:\n    app(['compare', *sys.argv[1:]])\n"
        "finally:\n    print({'torch', 'triton', 'pandas', 'transformers'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", script, SOURCE, EXPORT], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().endswith("set()")
