from __future__ import annotations

import pytest

from auditor.finding import Severity
from auditor.rule import Rule
from quant.errors import UsageError
from reports import rulebook


class Worn(Rule):
    """A scale is worn.

    ## What it checks
    Every scale.

    ## Why it matters
    The first line
    goes on.

    A second paragraph.

    ## Fix
    None.
    """

    code, title, severity = "TST101", "worn scale", Severity.WARNING


@pytest.fixture(autouse=True)
def _one_rule(monkeypatch):
    monkeypatch.setattr(rulebook, "all_rules", lambda: (Worn(),))
    rulebook._by_code.cache_clear()
    yield
    rulebook._by_code.cache_clear()


def test_a_page_starts_with_code_title_and_severity():
    page = rulebook.page("tst101")
    assert page.startswith(
        "# TST101: worn scale\n\nSeverity: warning. Speaks from depth `scales` on.\n\nA scale is worn."
    )
    assert page.endswith("## Fix\nNone.\n")


def test_parts_of_a_page():
    assert rulebook.first_line("TST101") == "A scale is worn."
    assert rulebook.paragraph("TST101", "Why it matters") == "The first line goes on."
    assert rulebook.paragraph("TST101", "References") == ""
    assert rulebook.paragraph("NON101", "Fix") == ""
    assert rulebook.rows() == [("TST101", "warning", "worn scale")]


def test_an_unknown_code_names_its_neighbours():
    with pytest.raises(UsageError, match="no rule 'TST102'; did you mean TST101"):
        rulebook.page("TST102")
    with pytest.raises(UsageError, match=r"no rule 'X'$"):
        rulebook.page("X")


def test_every_rule_has_a_page_with_its_sections():
    rulebook._by_code.cache_clear()
    from auditor.rule import all_rules

    for rule in all_rules():
        assert rule.page(), rule.code
