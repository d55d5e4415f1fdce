"""Real exports: exactly the errors and warnings that belong there, and none on the sound ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Depth
from auditor.finding import Severity
from tests.audits import audited

CORPUS = Path(__file__).parents[1] / "data" / "corpus"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CORPUS / "expectations.json").read_text())


@pytest.mark.parametrize("depth", [Depth.SCALES, Depth.FULL], ids=lambda d: d.label)
@pytest.mark.parametrize("name", EXPECTED)
def test_findings(name: str, depth: Depth) -> None:
    audit = audited(CORPUS / name, depth)
    wanted = EXPECTED[name].get(depth.label, EXPECTED[name]["scales"])
    found = sorted([f.code, f.severity.label, f.tensor] for f in audit.findings if f.severity >= Severity.WARNING)
    assert found == wanted
    assert list(audit.formats) == EXPECTED[name]["formats"]
    assert len(audit.skipped) == EXPECTED[name]["unchecked"]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_fact_is_told(name: str) -> None:
    """What another look at the bytes found wrong is named, as information at least."""
    told = {f.tensor for f in audited(CORPUS / name).findings}
    for tensor, fact in EXPECTED[name]["facts"]:
        where = {"config.json", "hf_quant_config.json"} if tensor == "config" else {tensor}
        assert told & where, fact


@pytest.mark.parametrize("depth", [Depth.HEADERS, Depth.SCALARS], ids=lambda d: d.label)
@pytest.mark.parametrize("name", EXPECTED)
def test_shallow_scans_say_no_more(name: str, depth: Depth) -> None:
    audit = audited(CORPUS / name, depth)
    found = [[f.code, f.severity.label, f.tensor] for f in audit.findings if f.severity >= Severity.WARNING]
    assert all(finding in EXPECTED[name]["scales"] for finding in found)


def test_every_folder_is_expected() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == set(EXPECTED)
