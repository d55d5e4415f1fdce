"""Who computes a hot operation."""

from __future__ import annotations

from enum import StrEnum


class Backend(StrEnum):
    """The faces of a hot operation on numpy arrays; their results are the same."""

    CPU = "cpu"
    """Numba, on all cores."""
    REFERENCE = "reference"
    """numpy: the definition."""
