"""The command as a process of its own: what it loads, and how it ends when nobody listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reports import demo

ROOT = Path(__file__).parents[2]


def run(*words: str, **options) -> subprocess.CompletedProcess:
    code = "from reports.cli import app; app(prog_name='audit')"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AUDIT_")} | {"PYTHONPATH": str(ROOT)}
    words = (sys.executable, *options.pop("python", ()), "-c", code, *words)
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, **options)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    demo.forge(folder)
    return folder


def test_the_demo_finds_its_damage_and_ends_well(tmp_path):
    done = run("demo", "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    found, _, mended = done.stdout.partition("$ audit repair ")
    assert found.count("SCL101") == 3
    assert "6 findings gone, no errors left" in mended
    assert "No findings." in mended
    assert done.stdout.splitlines()[-1].startswith("Exit code 0, because finding these is the demo's job")
    assert (tmp_path / "kept" / "damaged" / "config.json").is_file()
    again = run("demo", "--keep", str(tmp_path / "kept"))
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_a_reader_that_leaves_is_no_error(damaged):
    code = f"from reports.cli import app; app(['scan', {str(damaged)!r}, '--format', 'json'])"
    command = f'{sys.executable} -c "{code}" | head -c 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "{"
    assert done.stderr == ""
    assert done.returncode == 1
    command = f"{sys.executable} -c \"from reports.cli import app; app(['demo'])\" | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_closed_stdout_is_no_fault(damaged):
    code = f"from reports.cli import app; app(['scan', {str(damaged)!r}])"
    command = f'{sys.executable} -c "{code}" >&-'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stderr, done.returncode) == ("", 1)


def test_a_full_disk_is_said(damaged):
    code = f"from reports.cli import app; app(['scan', {str(damaged)!r}])"
    command = f'{sys.executable} -c "{code}" >/dev/full'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stderr == "audit: cannot write: No space left on device\n"
    assert done.returncode == 3


@pytest.mark.parametrize("words", [["--help"], ["scan", "--help"], ["--version"], ["explain"], ["demo"]], ids=" ".join)
def test_a_full_disk_is_said_whatever_is_printed(words):
    code = f"from reports.cli import app; app({words!r}, prog_name='audit')"
    command = f'{sys.executable} -c "{code}" >/dev/full'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stderr, done.returncode) == ("audit: cannot write: No space left on device\n", 3)


def test_a_closed_stdin_names_no_checkpoint():
    command = f"{sys.executable} -c \"from reports.cli import app; app(['scan', '-'])\" <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stderr, done.returncode) == ("audit: stdin names no checkpoint\n", 2)


def test_a_scan_starts_light(damaged):
    done = run("scan", str(damaged), python=["-X", "importtime"], cwd=damaged)
    assert done.returncode == 1
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"pandas", "rich", "numba", "torch", "jsonschema", "pyarrow", "rich.console", "tomllib", "json.tool"}
    assert not loaded & heavy
    assert "numpy" in loaded
