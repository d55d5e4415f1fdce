"""The documents that are written from the code say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auditor.rule import Rule, all_rules
from reports import demo
from reports.cli import app

ROOT = Path(__file__).parent.parent
SECTIONS = ["What it checks", "Why it matters", "What engines do", "Fix", "References"]


def _make():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["rules", "formats"])
def test_document_is_up_to_date(name):
    assert (ROOT / "docs" / f"{name}.md").read_text() == getattr(_make(), name)(), "run python docs/make.py"


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_every_rule_has_a_whole_page(rule: Rule):
    page = rule.page()
    assert re.findall(r"^## (.+)$", page, re.M) == SECTIONS
    assert page.splitlines()[0].endswith(".")
    assert rule.title
    assert not rule.title.endswith(".")


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", ["scan", "repair"])
def test_the_readme_shows_what_is_printed(command, tmp_path, monkeypatch):
    """Each line of the sample, without those that are left out (...), of the checkpoint that `audit demo` makes."""
    text = (ROOT / "README.md").read_text()
    words, sample = re.findall(rf"^    \$ audit ({command}\b.*)\n((?:    (?!\$).*\n)+)", text, re.M)[0]
    folder = tmp_path / words.split()[1]
    folder.mkdir()
    demo.forge(folder)
    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(app, words.split()).stdout
    lines = [line.removeprefix("    ") for line in sample.splitlines() if line.strip() != "..."]
    assert len(lines) >= 5
    assert [line for line in lines if line not in printed.splitlines()] == []
