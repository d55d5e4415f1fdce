"""The exporters' packages take seconds to import: these tests are not even collected unless they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the files alone unless ``-m`` selects the marker."""
    wanted = str(config.option.markexpr)
    return None if "clients" in wanted and "not clients" not in wanted else True
