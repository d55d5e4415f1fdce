from __future__ import annotations

import pytest

from auditor.finding import Severity
from auditor.rule import Rule
from auditor.select import check, matches, select
from quant.errors import UsageError


def rule(name: str) -> Rule:
    made = type(name, (Rule,), {"code": name, "title": name, "severity": Severity.ERROR})
    return made()


RULES = [rule(code) for code in ("ACT101", "GLB101", "GLB102", "SCL101", "SCL102", "SCL201")]


def on(select_: list[str] | None = None, ignore: list[str] | None = None) -> list[str]:
    return [r.code for r in select(RULES, select_ or [], ignore or [])]


@pytest.mark.parametrize(
    ("wanted", "unwanted", "codes"),
    [
        ([], [], ["ACT101", "GLB101", "GLB102", "SCL101", "SCL102", "SCL201"]),
        (["SCL"], [], ["SCL101", "SCL102", "SCL201"]),
        (["scl1", "ACT101"], [], ["ACT101", "SCL101", "SCL102"]),
        ([], ["SCL"], ["ACT101", "GLB101", "GLB102"]),
        (["SCL"], ["SCL1"], ["SCL201"]),
        (["SCL101"], ["SCL"], ["SCL101"]),
        (["SCL", "SCL101"], ["SCL1"], ["SCL101", "SCL201"]),
        (["SCL"], ["SCL"], []),
        (["ALL"], ["GLB"], ["ACT101", "SCL101", "SCL102", "SCL201"]),
        (["GLB"], ["ALL"], ["GLB101", "GLB102"]),
        ([], ["all"], []),
    ],
)
def test_the_longest_prefix_wins_and_a_tie_is_off(wanted, unwanted, codes):
    assert on(wanted, unwanted) == codes


@pytest.mark.parametrize(("wanted", "unwanted"), [(["SCL9"], []), ([], ["NVF"]), ([""], []), (["SCL", " "], [])])
def test_a_prefix_that_fits_nothing_is_wrong_usage(wanted, unwanted):
    with pytest.raises(UsageError, match="no rule starts with"):
        on(wanted, unwanted)


def test_the_codes_that_look_alike_are_named():
    with pytest.raises(UsageError, match="did you mean SCL101"):
        check(["SLC101"], RULES)


def test_matches():
    assert matches("SCL101", "scl")
    assert matches("SCL101", "ALL")
    assert not matches("SCL101", "SCL2")
