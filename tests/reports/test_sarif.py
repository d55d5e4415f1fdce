from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings

from auditor.audit import Depth
from reports import sarif
from reports.escape import visible
from reports.report import unreadable
from tests.reports.audits import AUDITS, CLEAN, FAULTY, FULL, NAN, SHARD, seen

SCHEMA = json.loads((Path(__file__).parent / "sarif.schema.json").read_text("utf-8"))


def logged(*reports) -> dict:
    log = json.loads(sarif.render(list(reports)))
    jsonschema.validate(log, SCHEMA)
    return log


def test_a_finding_is_a_result():
    (run,) = logged(seen(FULL))["runs"]
    assert [r["level"] for r in run["results"]] == ["error", "error", "warning", "note"]
    nan = run["results"][1]
    assert nan["ruleId"] == "SCL101"
    assert run["tool"]["driver"]["rules"][nan["ruleIndex"]]["id"] == "SCL101"
    location = nan["locations"][0]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": f"models/demo-NVFP4/{SHARD}"},
        "region": {"byteOffset": 123456, "byteLength": 1},
    }
    assert location["logicalLocations"][0]["fullyQualifiedName"] == NAN.tensor
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"] == {"byteOffset": 96, "byteLength": 4}


def test_the_fingerprint_is_rule_and_tensor():
    same = NAN._replace(message="other", count=3, shard="elsewhere", places=())
    assert sarif.fingerprint(NAN) == sarif.fingerprint(same)
    others = {sarif.fingerprint(f) for f in (NAN, NAN._replace(code="SCL102"), NAN._replace(tensor="x"))}
    assert len(others) == 3


def test_what_was_not_checked_is_notified():
    (run,) = logged(seen(FAULTY))["runs"]
    invocation = run["invocations"][0]
    assert not invocation["executionSuccessful"]
    texts = [n["message"]["text"] for n in invocation["toolExecutionNotifications"]]
    assert any("KeyError" in t for t in texts)
    assert any("permission denied" in t for t in texts)
    (gone,) = logged(unreadable("x", "gone", Depth.SCALES))["runs"]
    assert not gone["invocations"][0]["executionSuccessful"]
    assert logged(seen(CLEAN))["runs"][0]["invocations"][0]["executionSuccessful"]


def test_viewers_get_no_more_than_they_take():
    many = tuple(NAN._replace(tensor=f"layer.{i}", places=()) for i in range(sarif.SHOWN + 1))
    (run,) = json.loads(sarif.render([seen(replace(CLEAN, findings=many))]))["runs"]
    assert len(run["results"]) == sarif.SHOWN
    (notice,) = run["invocations"][0]["toolExecutionNotifications"]
    assert "5001 findings, of which the 5000 severest" in notice["message"]["text"]


@pytest.mark.parametrize(
    ("checkpoint", "uri"),
    [
        ("/data/my model", f"file:///data/my%20model/{SHARD}"),
        (f"/data/m/{SHARD}", f"file:///data/m/{SHARD}"),
        ("a:b", f"a%3Ab/{SHARD}"),
    ],
)
def test_a_file_has_a_valid_address(checkpoint, uri):
    run = logged(seen(replace(FULL, checkpoint=checkpoint)))["runs"][0]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


@settings(max_examples=100, deadline=None)
@given(AUDITS)
def test_any_text_makes_a_valid_log(audit):
    run = logged(seen(audit))["runs"][0]
    assert len(run["results"]) == len(audit.findings)
    for result, finding in zip(run["results"], audit.findings, strict=True):
        assert result["message"]["text"].endswith(visible(finding.message))
