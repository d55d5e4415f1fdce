from __future__ import annotations

import io
import sys

import pandas as pd
import pytest
from hypothesis import given, settings

from quant.errors import UsageError
from reports import columns, parquet
from tests.reports.audits import AUDITS, CLEAN, FULL, seen


def test_pandas_reads_the_findings_back():
    frame = pd.read_parquet(io.BytesIO(parquet.render([seen(FULL), seen(CLEAN)])))
    assert list(frame.columns) == list(columns.FINDINGS)
    assert list(frame.code) == [f.code for f in FULL.findings]
    assert frame["count"].dtype == "Int64"


@settings(max_examples=10, deadline=None)
@given(AUDITS)
def test_any_name_can_be_stored(audit):
    assert len(pd.read_parquet(io.BytesIO(parquet.render([seen(audit)])))) == len(audit.findings)


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"checkpoint-audit\[parquet\]"):
        parquet.render([seen(FULL)])
