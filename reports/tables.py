"""An audit as pandas tables.

Columns and dtypes are those of `reports.columns`, the same for an empty table, so that tables of several
audits can be put together with `pandas.concat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from auditor.audit import Audit
from auditor.finding import Finding
from reports import columns


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


def _frame(rows: Iterable[tuple[columns.Value, ...]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    listed = list(rows)
    data = {
        name: pd.Series([row[at] for row in listed], dtype=dtype, name=name)
        for at, (name, dtype) in enumerate(dtypes.items())
    }
    return pd.DataFrame(data, columns=list(dtypes))
