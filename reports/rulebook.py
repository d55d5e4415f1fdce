"""The pages of the rules: the list, one page, one section of a page."""

from __future__ import annotations

from functools import cache

from auditor.rule import Rule, all_rules
from quant.errors import UsageError


@cache
def _by_code() -> dict[str, Rule]:
    return {rule.code: rule for rule in all_rules()}


def known(code: str) -> Rule | None:
    """The rule with this code, None when there is none."""
    return _by_code().get(code)


def rule(code: str) -> Rule:
    """The rule with this code, in any case; raises UsageError with near matches when there is none."""
    found = known(code.strip().upper())
    if found is None:
        raise UsageError(f"no rule {code!r}{near(code.strip().upper(), list(_by_code()))}")
    return found


def near(word: str, words: list[str]) -> str:
    """A clause that names up to three of the words that look like this one; "" when none does."""
    from difflib import get_close_matches

    matches = get_close_matches(word, words, n=3, cutoff=0.5)
    matches += [w for w in words if word and w.startswith(word) and w not in matches][: 3 - len(matches)]
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def rows() -> list[tuple[str, str, str]]:
    """Code, severity and title of every rule, sorted by code."""
    return [(r.code, r.severity.label, r.title) for r in all_rules()]


def page(code: str) -> str:
    """A rule's page in Markdown, with a heading of code and title; raises UsageError for an unknown code."""
    found = rule(code)
    return f"# {found.code}: {found.title}\n\nSeverity: {found.severity.label}. {_depth(found)}\n\n{found.page()}\n"


def _depth(found: Rule) -> str:
    return f"Speaks from depth `{found.needs.label}` on."


def paragraph(code: str, section: str) -> str:
    """The first paragraph of a section of a rule's page, in one line; "" when rule or section is unknown."""
    found = known(code)
    if found is None:
        return ""
    _, heading, rest = found.page().partition(f"## {section}\n")
    body = rest.partition("\n## ")[0].strip() if heading else ""
    return " ".join(body.split("\n\n")[0].split())


def first_line(code: str) -> str:
    """The sentence that states the defect; "" when the rule is unknown."""
    found = known(code)
    return found.page().partition("\n")[0] if found else ""
