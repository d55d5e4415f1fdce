from __future__ import annotations

from dataclasses import replace

import pytest

from auditor.audit import Depth
from auditor.finding import Safety, Severity
from reports.report import Choice, Exit, fixable, unreadable, worst
from tests.reports.audits import CLEAN, FAULTY, FULL, LOOK, seen


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [(Severity.ERROR, 1), (Severity.WARNING, 1), (Severity.INFO, 1), (None, 0)],
)
def test_the_threshold_moves_the_exit_code(fail_on, code):
    assert seen(FULL, fail_on=fail_on).exit_code() == code


def test_a_finding_below_the_threshold_is_clean():
    info = replace(FULL, findings=(LOOK,))
    assert seen(info).exit_code() == Exit.CLEAN
    assert seen(info, fail_on=Severity.WARNING).exit_code() == Exit.CLEAN
    assert seen(info, fail_on=Severity.INFO).exit_code() == Exit.FINDINGS


def test_what_is_not_listed_still_counts():
    warning = replace(FULL, findings=tuple(f for f in FULL.findings if f.severity < Severity.ERROR))
    report = seen(warning, least=Severity.ERROR, fail_on=Severity.WARNING)
    assert report.shown == ()
    assert report.below == 2
    assert report.exit_code() == Exit.FINDINGS


def test_what_is_excused_does_not_count():
    report = seen(FULL, known=lambda f: f.code == "SCL101", ignored=lambda f: f.code == "GLB102")
    assert (report.known, report.ignored) == (1, 1)
    assert report.exit_code() == Exit.CLEAN


def test_what_could_not_be_checked_is_3():
    assert seen(FAULTY).exit_code() == Exit.UNCHECKED
    assert seen(CLEAN).exit_code(strict=True) == Exit.CLEAN
    assert seen(FULL, fail_on=None).exit_code() == Exit.CLEAN
    assert seen(FULL).exit_code(strict=True) == Exit.UNCHECKED
    gone = unreadable("x", "x: no such folder", Depth.SCALES)
    assert gone.exit_code() == Exit.UNCHECKED
    assert gone.audit.skipped[0].reason == "no such folder"
    assert worst([Exit.FINDINGS, Exit.UNCHECKED, Exit.CLEAN]) == Exit.UNCHECKED
    assert worst([]) == Exit.CLEAN


def test_fixable_by_safety():
    expected = {Safety.EXACT: 1, Safety.RESTORED: 0, Safety.BOUNDED: 1, Safety.GUESS: 1}
    assert fixable(Choice().report(FULL).live) == expected
