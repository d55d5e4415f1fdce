"""Reads checkpoints and names their defects; never opens a file for writing.

`scan(path)` is the whole API: it returns an `Audit`, which `reports` turns into tables and files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.audit import Audit as Audit
    from auditor.engine import scan as scan

__all__ = ["Audit", "scan"]


def __getattr__(name: str) -> Any:
    """Resolve the two public names on first use, so that importing one room does not load the others."""
    if name == "scan":
        from auditor.engine import scan

        return scan
    if name == "Audit":
        from auditor.audit import Audit

        return Audit
    raise AttributeError(name)
