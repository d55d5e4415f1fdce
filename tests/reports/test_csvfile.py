from __future__ import annotations

import csv
import io
from dataclasses import replace

import pandas as pd
from hypothesis import given, settings

from reports import columns, csvfile
from reports.escape import cell
from tests.reports.audits import AUDITS, CLEAN, FULL, NAN, seen


def test_pandas_reads_the_findings_back():
    frame = pd.read_csv(io.StringIO(csvfile.render([seen(FULL)])))
    assert list(frame.columns) == list(columns.FINDINGS)
    assert list(frame.code) == [f.code for f in FULL.findings]
    row = frame.set_index("code").loc["SCL101"]
    assert (row.tensor, row.offset, row["count"], row.fix) == (NAN.tensor, 123456, 12, "guess")


def test_a_clean_checkpoint_leaves_the_header():
    assert csvfile.render([seen(CLEAN)]) == ",".join(columns.FINDINGS) + "\n"


def test_a_formula_is_disarmed():
    audit = replace(FULL, findings=(NAN._replace(tensor="=cmd|' /C calc'!A0"),))
    row = next(csv.DictReader(io.StringIO(csvfile.render([seen(audit)]))))
    assert row["tensor"] == "'=cmd|' /C calc'!A0"


@settings(max_examples=50)
@given(AUDITS)
def test_every_field_comes_back_escaped(audit):
    raw = csvfile.render([seen(audit)])
    assert raw.replace("\n", "").isprintable()
    rows = list(csv.DictReader(io.StringIO(raw)))
    assert [(r["tensor"], r["message"]) for r in rows] == [(cell(f.tensor), cell(f.message)) for f in audit.findings]
