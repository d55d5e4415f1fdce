"""The columns of the four tables, and an audit's rows in them.  Names are escaped: a table may be printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from auditor.audit import Audit, LayerRow
from auditor.finding import Finding
from reports.escape import visible

Value = str | int | float | bool | None

# Column -> pandas dtype.  Columns may be added at the end, never renamed, moved or retyped.
FINDINGS: Mapping[str, str] = {
    "checkpoint": "string",
    "code": "string",
    "severity": "string",
    "title": "string",
    "tensor": "string",
    "shard": "string",
    "layer": "string",
    "message": "string",
    "count": "Int64",
    "index": "string",  # of the first place, as [row, column]
    "offset": "Int64",  # of the first place, absolute in the shard
    "old": "string",  # bytes at the first place
    "related": "string",  # names, separated by spaces
    "fix": "string",  # safety of the remedy
    "fix_note": "string",
}
TENSORS: Mapping[str, str] = {
    "checkpoint": "string",
    "name": "string",
    "shard": "string",
    "dtype": "string",
    "shape": "string",
    "offset": "Int64",
    "nbytes": "Int64",
    "layer": "string",
    "format": "string",
    "role": "string",
    "read": "boolean",
}
LAYERS: Mapping[str, str] = {
    "checkpoint": "string",
    "layer": "string",
    "format": "string",
    "shard": "string",
    "codes": "string",
    "rows": "Int64",
    "columns": "Int64",
    "global_scale": "Float64",
    "input_scale": "Float64",
    "blocks": "Int64",
    "scale_min": "Float64",
    "scale_max": "Float64",
    "zeros": "Int64",
    "nan": "Int64",
    "saturated": "Int64",
    "subnormal": "Int64",
    "octaves": "Float64",
}
SKIPPED: Mapping[str, str] = {"checkpoint": "string", "tensor": "string", "reason": "string"}

_LAYER_FIELDS = LayerRow._fields


def finding_rows(audit: Audit, findings: Iterable[Finding]) -> Iterator[tuple[Value, ...]]:
    """One row a finding, in the order given."""
    for f in findings:
        place = f.places[0] if f.places else None
        yield (
            visible(audit.checkpoint),
            f.code,
            f.severity.label,
            visible(f.title),
            visible(f.tensor),
            visible(f.shard),
            visible(f.layer),
            visible(f.message),
            f.count,
            str(list(place.index)) if place else None,
            place.offset if place else None,
            visible(place.old) if place else None,
            " ".join(map(visible, f.related)),
            f.fix.safety.label if f.fix else None,
            visible(f.fix.note) if f.fix else None,
        )


def tensor_rows(audit: Audit) -> Iterator[tuple[Value, ...]]:
    """One row a tensor."""
    checkpoint = visible(audit.checkpoint)
    for t in audit.tensors:
        names = (checkpoint, visible(t.name), visible(t.shard), visible(t.dtype), str(list(t.shape)))
        yield (*names, t.offset, t.nbytes, visible(t.layer), t.format, t.role, t.read)


def layer_rows(audit: Audit) -> Iterator[tuple[Value, ...]]:
    """One row a quantised layer."""
    checkpoint = visible(audit.checkpoint)
    for row in audit.layers:
        values = (getattr(row, name) for name in _LAYER_FIELDS)
        yield (checkpoint, *(visible(v) if isinstance(v, str) else v for v in values))


def skipped_rows(audit: Audit) -> Iterator[tuple[Value, ...]]:
    """One row a tensor or file that could not be checked."""
    for s in audit.skipped:
        yield visible(audit.checkpoint), visible(s.tensor), visible(s.reason)
