"""What tests of commands share: no setting of the caller's, and the demo's damaged checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reports import demo


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option from the environment."""
    for name in [name for name in os.environ if name.startswith("AUDIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder with the demo's checkpoint, its six defects included."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    demo.forge(folder)
    return folder
