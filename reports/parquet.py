"""Tables as Parquet; of a scan, the table `reports.tables.findings` of all checkpoints."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quant.errors import UsageError
from reports.report import Report

if TYPE_CHECKING:
    import pandas as pd


def render(reports: Sequence[Report]) -> bytes:
    """The file's bytes; raises UsageError without pyarrow, which is the extra ``parquet``."""
    _require()
    from reports import tables

    return to_bytes([tables.findings(r.audit, r.shown) for r in reports])


def to_bytes(frames: Sequence[pd.DataFrame]) -> bytes:
    """Frames of one kind as one file; raises UsageError without pyarrow."""
    _require()
    import pandas as pd

    out = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(out, engine="pyarrow", index=False)
    return out.getvalue()


def _require() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError('parquet needs pyarrow: pip install "checkpoint-audit[parquet]"') from None
