"""Findings as CSV: the columns of `reports.columns.FINDINGS`, text safe for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from reports import columns
from reports.escape import cell
from reports.report import Report


def render(reports: Sequence[Report]) -> str:
    """One line a finding below one line of column names; an empty field where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns.FINDINGS)
    for report in reports:
        for row in columns.finding_rows(report.audit, report.shown):
            writer.writerow([cell(v) if isinstance(v, str) else v for v in row])
    return out.getvalue()
