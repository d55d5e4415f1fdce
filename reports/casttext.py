"""A cast in words: a row for each tensor, what it came to in sum, what was written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reports.escape import short, visible
from reports.jsonfile import SCHEMA_VERSION, Json
from reports.layout import Line, Span, cells, fold, fold_name
from reports.quantity import number, plural, share, size

if TYPE_CHECKING:
    from repair.make.castrow import CastRow

_HEAD = ("SPREAD", "M", "BLOCKS", "EXACT", "SNR")


@dataclass(frozen=True)
class Told:
    """What there is to tell.  ``nbytes``: of the new shards; ``read``: of the source, in this run; ``done``: written."""

    source: str
    target: str
    layout: str
    activations: str
    rows: Sequence[CastRow]
    nbytes: int
    shards: int
    read: int
    done: bool
    resumed: int = 0
    files: Sequence[str] = field(default_factory=tuple)
    left_out: Sequence[str] = field(default_factory=tuple)


def lines(told: Told, width: int | None, limit: int | None = None) -> Iterator[Line]:
    """The table and the sum below it; ``limit``: rows listed, those with errors first."""
    rows = told.rows
    if limit is not None and len(rows) > limit:
        rows = sorted(rows, key=lambda row: row.exact == row.blocks)[:limit]  # stable: else in the order of the files
    table = [_HEAD, *map(_cells, rows)]
    widths = [max(cells(row[i]) for row in table) for i in range(len(_HEAD))]
    yield _line(_HEAD, widths, "TENSOR", "strong")
    for row, texts in zip(rows, table[1:], strict=True):
        room = width - sum(widths) - 2 * len(widths) if width else None
        first, *more = fold_name(short(row.tensor), max(20, room) if room else None)
        yield _line(texts, widths, first, "" if row.exact == row.blocks else "warning")
        for part in more:
            yield Span(" " * (sum(widths) + 2 * len(widths))), Span(part, "name")
    if len(rows) < len(told.rows):
        yield (Span(f"... and {number(len(told.rows) - len(rows))} more (--format json lists all)", "faint"),)
    yield ()
    for text in _sum(told):
        for part in fold(visible(text), width):
            yield (Span(part),)


def _line(texts: Sequence[str], widths: Sequence[int], name: str, style: str) -> Line:
    body = "".join(" " * (width - cells(text)) + text + "  " for text, width in zip(texts, widths, strict=True))
    return Span(body, style), Span(name, style if style == "strong" else "name")


def _cells(row: CastRow) -> tuple[str, ...]:
    m = str(row.m_low) if row.m_low == row.m_high else f"{row.m_low}..{row.m_high}"
    spread = str(row.spread) if row.spread >= 0 else "-"
    return spread, m, number(row.blocks), share(row.exact, row.blocks), decibels(row.snr)


def decibels(snr: float) -> str:
    """A ratio in decibels; inf where nothing was lost."""
    return f"{snr:.1f}" if math.isfinite(snr) else "inf" if snr > 0 else "-inf"


def _sum(told: Told) -> Iterator[str]:
    from repair.make.castrow import total

    made = total(told.rows)
    if made is not None:
        exact = f"{number(made.exact)} of {plural(made.blocks, 'block')} exact ({share(made.exact, made.blocks)})"
        yield f"{plural(len(told.rows), 'tensor')}, {plural(made.scales, 'global scale')}: {exact}."
        if made.requantised:
            yield f"{plural(made.requantised, 'fused set')} requantised from amax, which loses less than the closed form."
    shards = plural(told.shards, "shard")
    if not told.done:
        yield f"To be written to {told.target}: {size(told.nbytes)} in {shards}; read for this: {size(told.read)}."
        return
    copied = f", {size(made.copied)} of codes copied unread" if made and made.copied else ""
    again = f" ({told.resumed} of an earlier run)" if told.resumed else ""
    yield f"Written to {told.target}: {size(told.nbytes)} in {shards}{again}; {size(told.read)} read{copied}."
    if told.left_out:
        yield f"Left out: {'; '.join(told.left_out[:4])}{' and more' if len(told.left_out) > 4 else ''}."


def render(told: Told) -> str:
    """The same for other programs: one JSON object, fields may be added, never renamed."""
    from repair.make.castrow import total

    made = total(told.rows)
    document: dict[str, Json] = {
        "schema_version": SCHEMA_VERSION,
        "source": told.source,
        "target": told.target,
        "layout": told.layout,
        "activations": told.activations,
        "written": told.done,
        "tensors": [_row(row) for row in told.rows],
        "summary": None if made is None else {key: value for key, value in _row(made).items() if key != "tensor"},
        "bytes": told.nbytes,
        "bytes_read": told.read,
        "shards": told.shards,
        "resumed": told.resumed,
        "files": list(told.files),
        "left_out": list(told.left_out),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _row(row: CastRow) -> dict[str, Json]:
    return {
        "tensor": row.tensor,
        "spread": row.spread if row.spread >= 0 else None,
        "m": [row.m_low, row.m_high],
        "global_scales": row.scales,
        "blocks": row.blocks,
        "exact": row.exact,
        "squared_error": row.error,
        "snr_db": row.snr if math.isfinite(row.snr) else None,
        "requantised": row.requantised,
        "bytes_copied": row.copied,
    }


__all__ = ["Told", "decibels", "lines", "render"]
