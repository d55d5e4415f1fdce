"""A comparison for other programs: JSON, JSON lines, CSV, Markdown, Parquet.

JSON has no infinity and no NaN: an SQNR of "inf" is written as the string "inf", as are "-inf" and "nan".
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reports import comparetext as text
from reports.comparison import DISTANCES, Ranking, distance_rows
from reports.escape import cell, code, markdown, short
from reports.jsonfile import SCHEMA_VERSION
from reports.jsontext import Json, pretty
from reports.layout import plain
from reports.parquet import to_bytes
from reports.quantity import share

if TYPE_CHECKING:
    from repair.distance_pairs import Unmatched
    from repair.distance_result import TensorDistance, WorstBlock


def content(name: str, ranking: Ranking) -> str | bytes:
    """The comparison in one of `reports.comparison.FORMATS`; raises UsageError when a format's package is missing."""
    if name in {"table", "plain"}:
        lines = text.table(ranking) if name == "table" else text.names(ranking)
        return "".join(plain(line) + "\n" for line in lines)
    if name == "json":
        return pretty(document(ranking))
    if name == "jsonl":
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in _lines(ranking))
    if name == "csv":
        return _csv(ranking)
    if name == "markdown":
        return "\n".join(_markdown(ranking)) + "\n"
    if name == "parquet":
        from reports import tables

        return to_bytes([tables.distances(ranking)])
    raise ValueError(f"unknown format {name!r}")


def document(ranking: Ranking) -> dict[str, Json]:
    """The comparison as a JSON object, schema version 1; fields may be added, never renamed."""
    done = ranking.comparison
    return {
        "schema_version": SCHEMA_VERSION,
        "a": done.a,
        "b": done.b,
        "tensors": [tensor(t, ranking) for t in ranking.shown],
        "worst": [_worst(block) for block in done.worst(ranking.worst)],
        "unmatched": [_unmatched(item) for item in done.unmatched],
        "unread": [_unmatched(item) for item in done.unread],
        "summary": summary(ranking),
    }


def summary(ranking: Ranking) -> dict[str, Json]:
    """Sums over the quantised tensors that are finite, counts over all."""
    done, total = ranking.comparison, ranking.comparison.total
    return {
        "compared": len(done.tensors),
        "differ": sum(t.sums.squared != 0 for t in done.tensors),
        "failed": len(ranking.failing),
        "max_mse": ranking.max_mse,
        "min_sqnr": ranking.min_sqnr,
        "count": total.sums.count,
        "mse": _finite(total.sums.mse),
        "sqnr": _finite(total.sums.sqnr),
        "max_error": _finite(total.sums.largest),
        "cosine": _finite(total.sums.cosine),
        "blocks": total.blocks,
        "exact_blocks": total.exact,
        "rounding_blocks": total.rounding,
        "incomparable": sum(t.found.incomparable for t in done.tensors),
        "broken": sum(t.found.broken for t in done.tensors),
        "unmatched": len(done.unmatched),
        "unread": len(done.unread),
        "ignored": dict(sorted(done.ignored.items())),
        "bytes_compared": done.bytes_compared,
        "broken_tensors": done.broken,
    }


def tensor(t: TensorDistance, ranking: Ranking) -> dict[str, Json]:
    """One tensor as a JSON object; names are exact."""
    return {
        "tensor": t.tensor,
        "expert": t.expert,
        "sources": list(t.sources),
        "source_format": t.source_format,
        "format": t.format,
        "shard": t.shard,
        "experts": t.experts,
        "rows": t.rows,
        "columns": t.columns,
        "count": t.sums.count,
        "mse": _finite(t.sums.mse),
        "sqnr": _finite(t.sums.sqnr),
        "max_error": _finite(t.sums.largest),
        "cosine": _finite(t.sums.cosine),
        "blocks": t.found.blocks,
        "exact_blocks": t.found.exact,
        "rounding_blocks": t.found.rounding,
        "incomparable": t.found.incomparable,
        "broken": t.found.broken,
        "failed": ranking.failed(t),
        "worst": [_worst(block) for block in t.worst],
    }


def _worst(block: WorstBlock) -> dict[str, Json]:
    return {
        "tensor": block.tensor,
        "expert": block.expert,
        "rows": list(block.rows),
        "columns": list(block.columns),
        "error": _finite(block.error),
        "scale": None if block.scale is None else _finite(block.scale),
        "shard": block.shard,
        "offset": block.offset,
    }


def _unmatched(item: Unmatched) -> dict[str, Json]:
    return {"side": item.side, "tensor": item.tensor, "reason": item.reason}


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _lines(ranking: Ranking) -> Iterator[dict[str, Json]]:
    """One object a line, told apart by ``type``: tensor, unmatched, unread, and at the end summary."""
    done = ranking.comparison
    head: dict[str, Json] = {"schema_version": SCHEMA_VERSION, "a": done.a, "b": done.b}
    yield from ({"type": "tensor", **head, **tensor(t, ranking)} for t in ranking.shown)
    yield from ({"type": "unmatched", **head, **_unmatched(item)} for item in done.unmatched)
    yield from ({"type": "unread", **head, **_unmatched(item)} for item in done.unread)
    yield {"type": "summary", **head, **summary(ranking)}


def _csv(ranking: Ranking) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(DISTANCES)
    for row in distance_rows(ranking):
        writer.writerow([cell(v) if isinstance(v, str) else v for v in row])
    return out.getvalue()


def _markdown(ranking: Ranking) -> Iterator[str]:
    done = ranking.comparison
    yield f"## {code(short(done.b))} against {code(short(done.a))}\n"
    yield f"**{markdown(text.verdict(ranking)[0])}**\n"
    if ranking.shown:
        yield "| Tensor | SQNR dB | MSE | Max | Cosine | Exact blocks |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: |"
        for t in ranking.shown:
            name = code(short(t.tensor)) + (f" expert {t.expert}" if t.expert is not None else "")
            figures = (text.decibels(t.sums.sqnr), text.figure(t.sums.mse), text.figure(t.sums.largest))
            blocks = share(t.found.exact, t.found.blocks)
            yield f"| {name} | {' | '.join(figures)} | {text.cosine(t.sums.cosine)} | {blocks} |"
        yield ""
    yield from (f"- {markdown(line)}" for line in (*text.totals(ranking), *text.formats(ranking)))
    yield from (f"- Ignored: {markdown(line)}" for line in text.hidden(ranking))
    yield from (f"- Left out: {markdown(line)}" for line in text.left_out(ranking))
    yield from (f"- Unread: {markdown(line)}" for line in text.unread(ranking))
