"""The documents that are written from the code say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from auditor.rule import Rule, all_rules

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
