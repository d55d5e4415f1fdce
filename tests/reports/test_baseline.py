from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from quant.errors import UsageError
from reports import baseline
from tests.reports.audits import AUDITS, FULL, FUSED, NAN


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(AUDITS)
def test_what_was_written_is_known(tmp_path, audit):
    path = tmp_path / "known.json"
    path.write_text(baseline.render(audit.findings), "utf-8")
    known = baseline.read(path)
    assert all(f in known for f in audit.findings)
    assert len(known.known) == len({(f.code, f.tensor) for f in audit.findings})


def test_rule_and_tensor_decide(tmp_path):
    path = tmp_path / "known.json"
    path.write_text(baseline.render([NAN, NAN]), "utf-8")
    known = baseline.read(path)
    assert NAN._replace(message="x", count=99) in known
    assert FUSED not in known
    assert NAN._replace(tensor="x") not in known
    assert len(json.loads(path.read_text())["findings"]) == 1


def test_the_order_of_findings_does_not_matter():
    assert baseline.render(FULL.findings) == baseline.render(FULL.findings[::-1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a baseline"),
        ('{"baseline_version": 2, "findings": []}', "is not a baseline of version 1"),
        ('{"baseline_version": 1}', "holds no list"),
        ('{"baseline_version": 1, "findings": [{"code": "X"}]}', "finding 0 lacks"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, told):
    path = tmp_path / "known.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=told) as error:
        baseline.read(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot read baseline"):
        baseline.read(tmp_path / "gone.json")


def test_a_file_that_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            baseline.read(path)
