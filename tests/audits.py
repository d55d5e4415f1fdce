"""A scan, looked at by a second pair of eyes: what it must say of itself whatever the checkpoint is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from auditor.audit import Audit, Depth
from auditor.engine import scan
from auditor.finding import PLACES_KEPT, Finding, Severity
from tests.raw import WIDTH, Stored, stored


def audited(path: Path, depth: Depth = Depth.SCALES) -> Audit:
    """The audit, with every place compared with the bytes of its shard."""
    audit = scan(path, depth=depth)
    assert not audit.errors
    folder = path if path.is_dir() else path.parent
    assert audit.bytes_read <= audit.bytes_held
    headers = {shard: stored(folder / shard) for shard in audit.shards}
    _check_counts(audit, {name for header in headers.values() for name in header})
    for finding in audit.findings:
        if finding.places:
            _check_places(finding, folder, headers)
    return audit


def _check_counts(audit: Audit, tensors: set[str]) -> None:
    """A tensor is checked, unread or skipped."""
    assert audit.tensor_count == len(tensors)
    assert audit.tensors_skipped == len({skipped.tensor for skipped in audit.skipped} & tensors)
    assert audit.checked + audit.tensors_skipped + sum(audit.unread.values()) == audit.tensor_count


def _check_places(finding: Finding, folder: Path, headers: dict[str, dict[str, Stored]]) -> None:
    tensor = headers[finding.shard][finding.tensor]
    width = WIDTH[tensor.dtype]
    shape, start = tensor.shape, tensor.start
    content = (folder / finding.shard).read_bytes()
    assert len(finding.places) == min(finding.count, PLACES_KEPT)
    assert [p.offset for p in finding.places] == sorted({p.offset for p in finding.places})
    for place in finding.places:
        assert len(place.index) == len(shape)
        assert all(0 <= i < n for i, n in zip(place.index, shape, strict=True))
        flat = sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(place.index))
        assert place.offset == start + flat * width
        old = int.from_bytes(content[place.offset : place.offset + width], "little")
        assert place.old == f"0x{old:0{2 * width}X}"


def bad(audit: Audit, anywhere: Iterable[str] = ()) -> set[tuple[str, str]]:
    """(code, tensor) of every warning and error; "*" for the tensor of codes that may lie ``anywhere``."""
    found = (f for f in audit.findings if f.severity >= Severity.WARNING)
    return {(f.code, "*" if f.code in anywhere else f.tensor) for f in found}


def codes(audit: Audit, least: Severity = Severity.WARNING) -> list[str]:
    """The codes of the findings of at least this severity, in order."""
    return [f.code for f in audit.findings if f.severity >= least]


def about(audit: Audit, code: str) -> Finding:
    """The only finding with this code."""
    found: Iterable[Finding] = [f for f in audit.findings if f.code == code]
    (one,) = found
    return one


def flats(finding: Finding, shape: tuple[int, ...]) -> list[int]:
    """The flat element indices of a finding's places."""
    return [sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(p.index)) for p in finding.places]
