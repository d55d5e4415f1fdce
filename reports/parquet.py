"""Findings as Parquet: the table `reports.tables.findings` of all checkpoints."""

from __future__ import annotations

import io
from collections.abc import Sequence

from quant.errors import UsageError
from reports.report import Report


def render(reports: Sequence[Report]) -> bytes:
    """The file's bytes; raises UsageError without pyarrow, which is the extra ``parquet``."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError('parquet needs pyarrow: pip install "checkpoint-audit[parquet]"') from None
    import pandas as pd

    from reports import tables

    frames = [tables.findings(r.audit, r.shown) for r in reports]
    out = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(out, engine="pyarrow", index=False)
    return out.getvalue()
