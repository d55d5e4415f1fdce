from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
from hypothesis import given, settings

from auditor.finding import Severity
from reports import jsonfile
from tests.reports.audits import AUDITS, CLEAN, FAULTY, FULL, FUSED, seen

SCHEMA = json.loads((Path(__file__).parent / "report.schema.json").read_text("utf-8"))


def test_the_document_has_the_agreed_shape():
    stored = json.loads(jsonfile.render([seen(FULL)]))
    jsonschema.validate(stored, SCHEMA)
    assert stored["schema_version"] == 1
    assert list(stored)[:9] == [
        "schema_version", "checkpoint", "formats", "bytes_held", "bytes_read", "tensors", "findings", "skipped",
        "summary",
    ]  # fmt: skip
    fused = stored["findings"][0]
    assert fused["tensor"] == FUSED.tensor
    assert fused["places"] == [{"index": [], "offset": 96, "old": "0x37EBECCF"}]
    assert fused["related"] == list(FUSED.related)
    assert fused["fix"] == {"safety": "bounded", "note": FUSED.fix.note}
    assert stored["findings"][-1]["fix"] is None
    assert stored["skipped"][-1] == {"tensor": "model-00003-of-00003.safetensors", "reason": "permission denied"}
    assert stored["summary"]["findings"] == {"error": 2, "warning": 1, "info": 1}
    assert stored["summary"]["fixable"] == {"exact": 1, "restored": 0, "bounded": 1, "guess": 1}


def test_several_checkpoints_are_an_array():
    stored = json.loads(jsonfile.render([seen(FULL), seen(CLEAN)]))
    assert [len(d["findings"]) for d in stored] == [4, 0]


def test_faults_and_hidden_findings_are_told():
    stored = json.loads(jsonfile.render([seen(FAULTY, least=Severity.ERROR)]))
    assert len(stored["findings"]) == 2
    assert stored["summary"]["findings"] == {"error": 2, "warning": 1, "info": 1}
    assert stored["summary"]["hidden"]["min_severity"] == 2
    assert stored["summary"]["internal_errors"][0]["rule"] == "SCL101"


@settings(max_examples=50)
@given(AUDITS)
def test_any_text_comes_back_exactly(audit):
    raw = jsonfile.render([seen(audit)])
    assert raw.isascii()
    assert raw.replace("\n", "").isprintable()
    stored = json.loads(raw)
    jsonschema.validate(stored, SCHEMA)
    assert stored["checkpoint"] == audit.checkpoint
    assert [(f["tensor"], f["shard"], f["message"]) for f in stored["findings"]] == [
        (f.tensor, f.shard, f.message) for f in audit.findings
    ]
    assert [f["places"] for f in stored["findings"]] == [
        [p._asdict() | {"index": list(p.index)} for p in f.places] for f in audit.findings
    ]


@settings(max_examples=50)
@given(AUDITS)
def test_each_line_is_an_object(audit):
    lines = [json.loads(line) for line in jsonfile.render_lines([seen(audit)]).splitlines()]
    assert [line["type"] for line in lines] == [
        *["finding"] * len(audit.findings), *["skipped"] * len(audit.skipped), "summary",
    ]  # fmt: skip
    assert all(line["checkpoint"] == audit.checkpoint for line in lines)


def test_the_last_line_holds_the_totals():
    last = json.loads(jsonfile.render_lines([seen(replace(FULL, findings=()))]).splitlines()[-1])
    assert last["bytes_read"] == FULL.bytes_read
    assert last["findings"] == {"error": 0, "warning": 0, "info": 0}
