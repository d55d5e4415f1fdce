"""A cast in words: a row for each tensor, what it came to in sum, what was written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reports.escape import short, visible
from reports.jsonfile import SCHEMA_VERSION
from reports.jsontext import Json, pretty
from reports.layout import Line, Span, cells, fold, fold_name
from reports.quantity import number, plural, share, size

if TYPE_CHECKING:
    from repair.make.castrow import CastRow
    from repair.make.convertrow import ConvertRow
    from repair.make.shard import Row

_CAST = ("SPREAD", "M", "BLOCKS", "EXACT", "SNR")
_CONVERTED = ("SCALES", "EXACT", "ULPS")
_ROOM = 24  # columns that a name must have beside the numbers
_EXPERT = re.compile(r"\bexperts\.\d+\.")


@dataclass(frozen=True)
class Told:
    """What there is to tell.  ``nbytes``: of the new shards; ``read``: of the source, in this run; ``done``: written.

    ``rows``: one for each tensor; CastRow of MXFP4, ConvertRow of what only changed its layout.
    """

    source: str
    target: str
    layout: str
    activations: str
    rows: Sequence[CastRow] | Sequence[ConvertRow]
    nbytes: int
    shards: int
    read: int
    done: bool
    resumed: int = 0
    files: Sequence[str] = field(default_factory=tuple)
    left_out: Sequence[str] = field(default_factory=tuple)


def told_of(rows: Iterable[Row]) -> list[CastRow] | list[ConvertRow]:
    """Rows as the tasks gave them, added up for each tensor."""
    from repair.make.castrow import joined
    from repair.make.convertrow import ConvertRow

    found = list(rows)
    return joined(found) or [row for row in found if isinstance(row, ConvertRow)]


def lines(told: Told, width: int | None, limit: int | None = None) -> Iterator[Line]:
    """The table and the sum below it; the experts of one projection share a row.

    ``limit``: rows listed, those that are not exact first.
    """
    rows = list(_grouped(told.rows))
    head = _CONVERTED if rows and len(rows[0].texts) == len(_CONVERTED) else _CAST
    shown = rows
    if limit is not None and len(rows) > limit:
        shown = sorted(rows, key=lambda row: row.exact)[:limit]  # stable: else in the order of the files
    widths = [max(cells(texts[i]) for texts in (head, *(row.texts for row in shown))) for i in range(len(head))]
    room = None if width is None else width - sum(widths) - 2 * len(widths)
    if room is not None and room < _ROOM:
        yield from _narrow(shown, width)
    else:
        yield from _wide(head, shown, widths, room)
    if len(shown) < len(rows):
        yield (Span(f"... and {number(len(rows) - len(shown))} more (--format json lists all)", "faint"),)
    yield ()
    for text in _sum(told):
        for part in fold(visible(text), width):
            yield (Span(part),)


def _wide(head: Sequence[str], rows: Sequence[_Cells], widths: Sequence[int], room: int | None) -> Iterator[Line]:
    yield _line(head, widths, "TENSOR", "strong")
    for row in rows:
        first, *more = fold_name(short(row.name), room)
        yield _line(row.texts, widths, first, "" if row.exact else "warning")
        for part in more:
            yield Span(" " * (sum(widths) + 2 * len(widths))), Span(part, "name")


def _narrow(rows: Sequence[_Cells], width: int | None) -> Iterator[Line]:
    """Where a name has no room beside the numbers: below it what is exact, and the ratio of signal to noise."""
    for row in rows:
        for part in fold_name(short(row.name), width):
            yield (Span(part, "name"),)
        text = f"  {row.share} exact" + (f", SNR {row.texts[-1]}" if len(row.texts) == len(_CAST) else "")
        yield (Span(text, "" if row.exact else "warning"),)


@dataclass(frozen=True)
class _Cells:
    texts: tuple[str, ...]
    name: str
    exact: bool

    @property
    def share(self) -> str:
        """How much of it is exact."""
        return self.texts[-2]


def _line(texts: Sequence[str], widths: Sequence[int], name: str, style: str) -> Line:
    body = "".join(" " * (width - cells(text)) + text + "  " for text, width in zip(texts, widths, strict=True))
    return Span(body, style), Span(name, style if style == "strong" else "name")


def _grouped(rows: Iterable[CastRow] | Iterable[ConvertRow]) -> Iterator[_Cells]:
    """Of cast experts in modules of their own one row for each projection: ``experts.*.down_proj``.

    Its ratio of signal to noise is that of the worst.
    """
    from repair.make.castrow import CastRow, total

    groups: dict[str, list[CastRow]] = {}
    for row in rows:
        if isinstance(row, CastRow):
            groups.setdefault(_EXPERT.sub("experts.*.", row.tensor), []).append(row)
        else:
            yield _Cells((number(row.blocks), share(row.exact, row.blocks), str(row.ulps)), row.tensor, not row.ulps)
    for name, members in groups.items():
        made = total(members)
        if made is not None:
            yield _cells(made, name, min(row.snr for row in members))


def _cells(row: CastRow, name: str, snr: float) -> _Cells:
    m = str(row.m_low) if row.m_low == row.m_high else f"{row.m_low}..{row.m_high}"
    spread = str(row.spread) if row.spread >= 0 else "-"
    texts = (spread, m, number(row.blocks), share(row.exact, row.blocks), decibels(snr))
    return _Cells(texts, name, row.exact == row.blocks)


def decibels(snr: float) -> str:
    """A ratio in decibels; inf where nothing was lost."""
    return f"{snr:.1f}" if math.isfinite(snr) else "inf" if snr > 0 else "-inf"


def _sum(told: Told) -> Iterator[str]:
    made = _total(told.rows)
    blocks, good = sum(row.blocks for row in told.rows), sum(row.exact for row in told.rows)
    scales = f", {plural(made.scales, 'global scale')}" if made else ""
    exact = f"{number(good)} of {plural(blocks, 'block')} exact ({share(good, blocks)})"
    noise = f", the worst tensor at {decibels(_worst(told.rows))} dB" if made and made.error else ""
    yield f"{plural(len(told.rows), 'tensor')}{scales}: {exact}{noise}."
    if made and made.requantised:
        yield f"{plural(made.requantised, 'global scale')} from amax: requantising loses less there."
    shards = plural(told.shards, "shard")
    if not told.done:
        yield f"To be written to {told.target}: {size(told.nbytes)} in {shards}; read for this: {size(told.read)}."
        return
    copied = f", {size(made.copied)} of codes copied unread" if made and made.copied else ""
    again = f" ({told.resumed} of an earlier run)" if told.resumed else ""
    yield f"Written to {told.target}: {size(told.nbytes)} in {shards}{again}; {size(told.read)} read{copied}."
    if told.left_out:
        yield f"Left out: {'; '.join(told.left_out[:4])}{' and more' if len(told.left_out) > 4 else ''}."


def _total(rows: Sequence[CastRow] | Sequence[ConvertRow]) -> CastRow | None:
    from repair.make.castrow import CastRow, total

    return total(row for row in rows if isinstance(row, CastRow))


def _worst(rows: Sequence[CastRow] | Sequence[ConvertRow]) -> float:
    from repair.make.castrow import CastRow

    return min((row.snr for row in rows if isinstance(row, CastRow)), default=math.inf)


def render(told: Told) -> str:
    """The same for other programs: one JSON object, fields may be added, never renamed."""
    from repair.make.castrow import CastRow

    made = _total(told.rows)
    document: dict[str, Json] = {
        "schema_version": SCHEMA_VERSION,
        "source": told.source,
        "target": told.target,
        "layout": told.layout,
        "activations": told.activations,
        "written": told.done,
        "tensors": [_cast(row) if isinstance(row, CastRow) else _converted(row) for row in told.rows],
        "summary": None if made is None else _summary(made, _worst(told.rows)),
        "bytes": told.nbytes,
        "bytes_read": told.read,
        "shards": told.shards,
        "resumed": told.resumed,
        "files": list(told.files),
        "left_out": list(told.left_out),
    }
    return pretty(document)


def _summary(made: CastRow, worst: float) -> dict[str, Json]:
    """All tensors together; ``snr_db`` is the worst tensor's, null where all are exact."""
    found = {key: value for key, value in _cast(made).items() if key != "tensor"}
    return {**found, "snr_db": worst if math.isfinite(worst) else None}


def _cast(row: CastRow) -> dict[str, Json]:
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


def _converted(row: ConvertRow) -> dict[str, Json]:
    return {
        "tensor": row.tensor,
        "blocks": row.blocks,
        "exact": row.exact,
        "ulps": row.ulps,
        "deviation": row.deviation,
        "inverts": row.inverts,
        "dropped": row.dropped or None,
    }


__all__ = ["Told", "decibels", "lines", "render", "told_of"]
