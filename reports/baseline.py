"""Known findings: a file that hides what was accepted once.

A finding is known by its rule and its tensor, so it stays hidden when its message or its count changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from auditor.finding import Finding
from quant.errors import UsageError
from repair.given import content

VERSION = 1
MOST = 64 << 20  # bytes: half a million findings


@dataclass(frozen=True)
class Baseline:
    """The accepted findings, as pairs of code and tensor."""

    known: frozenset[tuple[str, str]] = frozenset()

    def __contains__(self, finding: object) -> bool:
        return isinstance(finding, Finding) and (finding.code, finding.tensor) in self.known


def read(path: Path) -> Baseline:
    """The baseline in a file; raises UsageError when it is missing or is not one."""
    try:
        stored = json.loads(content(path, "baseline", MOST))
    except (ValueError, RecursionError):
        raise UsageError(f"baseline {path} is not JSON") from None
    if not isinstance(stored, dict) or stored.get("baseline_version") != VERSION:
        raise UsageError(f"baseline {path} is not a baseline of version {VERSION}")
    entries = stored.get("findings")
    if not isinstance(entries, list):
        raise UsageError(f"baseline {path} holds no list of findings")
    return Baseline(frozenset(_pair(entry, at, path) for at, entry in enumerate(entries)))


def _pair(entry: object, at: int, path: Path) -> tuple[str, str]:
    code = entry.get("code") if isinstance(entry, dict) else None
    tensor = entry.get("tensor") if isinstance(entry, dict) else None
    if not isinstance(code, str) or not isinstance(tensor, str):
        raise UsageError(f"baseline {path}: finding {at} lacks a code or a tensor")
    return code, tensor


def render(findings: Iterable[Finding]) -> str:
    """A baseline file that knows these findings; sorted, so that a change of it reads well in a diff."""
    pairs = sorted({(f.code, f.tensor) for f in findings})
    entries = [{"code": code, "tensor": tensor} for code, tensor in pairs]
    return json.dumps({"baseline_version": VERSION, "findings": entries}, indent=1) + "\n"
