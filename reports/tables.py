"""An audit, or a comparison, as pandas tables.

Columns and dtypes are those of `reports.columns` and `reports.comparison`, the same for an empty table, so that tables
of several audits can be put together with `pandas.concat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from auditor.audit import Audit
from auditor.finding import Finding
from repair.distance_result import Comparison
from reports import columns, comparison
from reports.comparison import Ranking


def findings(audit: Audit, only: Sequence[Finding] | None = None) -> pd.DataFrame:
    """One row a finding: code, severity, tensor, message, count, first place, remedy.

    ``only``: the findings to show; None takes all of the audit's.
    """
    rows = columns.finding_rows(audit, audit.findings if only is None else only)
    return _frame(rows, columns.FINDINGS)


def tensors(audit: Audit) -> pd.DataFrame:
    """One row a stored tensor: where it lies, what it is part of, whether its bytes were read."""
    return _frame(columns.tensor_rows(audit), columns.TENSORS)


def layers(audit: Audit) -> pd.DataFrame:
    """One row a quantised layer with statistics of its scales; empty cells where the depth did not reach."""
    return _frame(columns.layer_rows(audit), columns.LAYERS)


def skipped(audit: Audit) -> pd.DataFrame:
    """One row a tensor or file that could not be checked, and why."""
    return _frame(columns.skipped_rows(audit), columns.SKIPPED)


def distances(compared: Ranking | Comparison) -> pd.DataFrame:
    """One row a tensor of a comparison: errors, blocks, and what it was compared with; worst first."""
    ranking = compared if isinstance(compared, Ranking) else Ranking(compared)
    return _frame(comparison.distance_rows(ranking), comparison.DISTANCES)


def _frame(rows: Iterable[tuple[columns.Value, ...]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    listed = list(rows)
    data = {name: _column([row[at] for row in listed], dtype) for at, (name, dtype) in enumerate(dtypes.items())}
    return pd.DataFrame(data, columns=list(dtypes))


def _column(values: list[columns.Value], dtype: str) -> pd.Series[Any]:
    if dtype != "Float64":
        return pd.Series(values, dtype=dtype)
    # A scale that is NaN must not become a scale that is not known.
    missing = np.array([v is None for v in values], np.bool_)
    return pd.Series(pd.arrays.FloatingArray(np.array([v or 0.0 for v in values], np.float64), missing))
