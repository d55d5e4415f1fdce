from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings

from auditor.audit import Audit
from reports import columns, tables
from tests.reports.audits import AUDITS, CLEAN, FULL, NAN

MAKERS = {
    tables.findings: columns.FINDINGS,
    tables.tensors: columns.TENSORS,
    tables.layers: columns.LAYERS,
    tables.skipped: columns.SKIPPED,
}
EMPTY = replace(CLEAN, tensors=(), layers=(), skipped=())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("audit", [FULL, EMPTY], ids=["full", "empty"])
def test_columns_and_dtypes_are_fixed(make, audit: Audit):
    frame = make(audit)
    expected = {name: pd.Series(dtype=dtype).dtype for name, dtype in MAKERS[make].items()}
    assert dict(frame.dtypes) == expected
    assert len(frame) == (0 if audit is EMPTY else len(frame))
    both = pd.concat([make(FULL), make(EMPTY)], ignore_index=True)
    assert dict(both.dtypes) == expected


def test_a_finding_is_a_row():
    row = tables.findings(FULL).set_index("code").loc["SCL101"]
    assert row.tensor == NAN.tensor
    assert row.severity == "error"
    assert (row["index"], row.offset, row.old) == ("[0, 5]", 123456, "0x7F")
    assert row["count"] == 12
    assert row.fix == "guess"
    assert pd.isna(tables.findings(FULL).set_index("code").loc["CFG110"].offset)


def test_a_layer_keeps_unknown_and_not_a_number_apart():
    frame = tables.layers(FULL).set_index("layer")
    known, unknown = frame.iloc[0], frame.loc["lm_head"]
    assert known.scale_max == 448.0
    assert known["nan"] == 12
    assert pd.isna(unknown.scale_max)
    assert unknown.scale_max is pd.NA
    assert known.input_scale is not pd.NA
    assert math.isnan(known.input_scale)


def test_tensors_and_skipped():
    frame = tables.tensors(FULL)
    assert list(frame["shape"]) == ["[64, 32]", "[64]"]
    assert frame.nbytes.sum() == 2176
    assert list(tables.skipped(FULL).reason)[-1] == "permission denied"


@settings(max_examples=25)
@given(AUDITS)
def test_names_in_a_table_are_printable(audit: Audit):
    for make in (tables.findings, tables.skipped):
        frame = make(audit)
        for name in frame.select_dtypes("string"):
            assert all(value.isprintable() for value in frame[name].dropna())
