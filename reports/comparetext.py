"""A comparison in words: a table of the tensors, the worst first, the worst blocks, and what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reports.comparison import Ranking
from reports.escape import short, visible
from reports.layout import Line, Span, fold, fold_name, labelled, pad
from reports.quantity import number, plural, share, size

if TYPE_CHECKING:
    from repair.distance_pairs import Unmatched
    from repair.distance_result import TensorDistance, WorstBlock

SHOWN = 40  # rows on a terminal
NARROW = 110  # columns below which a name has a line of its own
_NAMED = 8  # reasons listed
_BAR, _FULL = 10, 50.0  # characters of a bar, and the dB that fill it
_HEAD = (("SQNR dB", 8), ("", _BAR), ("MSE", 9), ("MAX", 9), ("COSINE", 8), ("EXACT", 7))
_BINS = 8  # rows of the histogram


def table(ranking: Ranking, width: int | None = None, limit: int | None = None) -> Iterator[Line]:
    """One row a tensor, worst first, at most ``limit``; then the worst blocks, the totals and what is missing."""
    shown = ranking.shown if limit is None else ranking.shown[:limit]
    if shown:
        yield from _table(ranking, shown, width)
        if (rest := len(ranking.rows) - len(shown)) > 0:
            yield (Span(f"... and {plural(rest, 'more tensor')} (--limit 0 lists all)", "faint"),)
        yield ()
    blocks = ranking.comparison.worst(ranking.worst)
    if blocks:
        yield (Span("Worst blocks", "strong"),)
        for block in blocks:
            yield from ((Span("  " + part),) for part in fold(_block(block, ranking), width - 2 if width else None))
        yield ()
    yield from _histogram(ranking)
    yield from footer(ranking, width)


def names(ranking: Ranking) -> Iterator[Line]:
    """Names of the tensors that fail; where no limit is set and none is broken, of those that differ."""
    limited = ranking.max_mse is not None or ranking.min_sqnr is not None
    rows = ranking.failing if limited or ranking.failing else [t for t in ranking.rows if t.sums.squared != 0]
    for name in dict.fromkeys(t.tensor for t in rows):
        yield (Span(visible(name)),)


def figure(value: float) -> str:
    """Three digits: 3.65e-06, 0.0213, 0."""
    return "0" if value == 0 else f"{value:.3g}"


def decibels(value: float) -> str:
    """A signal-to-noise ratio, `exact` where there is no error."""
    return "exact" if value == math.inf else f"{value:.2f}"


def cosine(value: float) -> str:
    """Five digits, 1 only for 1."""
    shown = f"{value:.5f}"
    return shown if value == 1 or shown != "1.00000" else "0.99999+"


def _cells(t: TensorDistance) -> tuple[str, ...]:
    sums = t.sums
    return (
        (decibels(sums.sqnr) if t.comparable else "none").rjust(8),
        bar(sums.sqnr if t.comparable else math.nan),
        figure(sums.mse).rjust(9),
        figure(sums.largest).rjust(9),
        cosine(sums.cosine).rjust(8),
        share(t.found.exact, t.found.blocks).rjust(7) if t.found.blocks else "".rjust(7),
    )


def bar(value: float) -> str:
    """The ratio as a bar of ten: a mark for every 5 dB, full where there is no error."""
    if math.isnan(value):
        return pad("?", _BAR)
    return pad("#" * int(min(max(value, 0.0), _FULL) / _FULL * _BAR), _BAR)


def _named(t: TensorDistance) -> str:
    return short(t.tensor) + (f" [{t.expert}]" if t.expert is not None else "")


def _table(ranking: Ranking, rows: Sequence[TensorDistance], width: int | None) -> Iterator[Line]:
    used = sum(wide + 2 for _, wide in _HEAD)
    stacked = width is not None and width < NARROW
    heading = "  ".join(head.rjust(wide) for head, wide in _HEAD)
    yield (Span(heading + ("" if stacked else "  TENSOR"), "faint"),)
    for t in rows:
        style = "error" if ranking.failed(t) else ""
        figures = "  ".join(_cells(t))
        parts = fold_name(_named(t), (width - (4 if stacked else used)) if width else None)
        if stacked:
            yield (Span(figures, style),)
            yield from ((Span("    "), Span(part, "name")) for part in parts)
            continue
        for at, part in enumerate(parts):
            yield Span(figures if at == 0 else " " * (used - 2), style), Span("  "), Span(part, "name")


def _block(block: WorstBlock, ranking: Ranking) -> str:
    error = "not finite" if math.isinf(block.error) else figure(block.error)
    scale = "" if block.scale is None else f", scale {block.scale:.4g}"
    high, wide = block.rows[1] - block.rows[0], block.columns[1] - block.columns[0]
    rows = f"row {block.rows[0]}" if high == 1 else f"rows {block.rows[0]}..{block.rows[1] - 1}"
    columns = f"column {block.columns[0]}" if wide == 1 else f"columns {block.columns[0]}..{block.columns[1] - 1}"
    many = any(t.tensor == block.tensor and t.experts > 1 for t in ranking.rows) or block.expert > 0
    expert = f"expert {block.expert}, " if many else ""
    what = "weights" if block.scale is None else "scale"
    where = f"{what} at byte {block.offset} of {short(block.shard)}"
    return f"error {error}{scale}  {short(block.tensor)}  {expert}{rows}, {columns}; {where}"


def _histogram(ranking: Ranking) -> Iterator[Line]:
    """How the ratios of the quantised tensors are spread, where there are enough of them to ask."""
    values = [t.sums.sqnr for t in ranking.comparison.tensors if t.quantised and math.isfinite(t.sums.sqnr)]
    if len(values) < 2 * _BINS or max(values) - min(values) < 1:
        return
    low, high = math.floor(min(values)), math.floor(max(values)) + 1
    step = max(1, -(-(high - low) // _BINS))
    counts = Counter((math.floor(value) - low) // step for value in values)
    yield (Span("Tensors by SQNR", "strong"),)
    for place in range(-(-(high - low) // step)):
        first = low + place * step
        mark = "#" * -(-40 * counts[place] // max(counts.values()))
        yield (Span(f"  {first:4d} to {first + step:4d} dB  {pad(mark, 40)}  {number(counts[place])}"),)
    yield ()


def verdict(ranking: Ranking) -> tuple[str, str]:
    """The outcome in one line, and its style."""
    done, count = ranking.comparison, len(ranking.comparison.tensors)
    if not any(t.comparable for t in done.tensors):
        return "Nothing could be compared.", "error"
    compared = f"{plural(count, 'tensor')} compared"
    broken = sum(t.found.broken > 0 for t in done.tensors)
    if ranking.failing:
        limits = [f"MSE above {ranking.max_mse:g}"] if ranking.max_mse is not None else []
        limits += [f"SQNR below {ranking.min_sqnr:g} dB"] if ranking.min_sqnr is not None else []
        limits += ["not finite on one side"] if broken else []
        fail = "fails" if len(ranking.failing) == 1 else "fail"
        return f"{compared}; {number(len(ranking.failing))} {fail}: {' or '.join(limits)}.", "error"
    differ = sum(t.sums.squared != 0 for t in done.tensors)
    if not differ:
        return f"{compared}; all are exact.", "strong"
    limited = ranking.max_mse is not None or ranking.min_sqnr is not None
    return f"{compared}; {number(differ)} differ" + (", all within the limits." if limited else "."), "strong"


def totals(ranking: Ranking) -> list[str]:
    """Errors over all quantised weights, and how the tensors that are float on both sides fared."""
    done = ranking.comparison
    total, sums = done.total, done.total.sums
    floats = [t for t in done.tensors if not t.quantised]
    lines = []
    if total.blocks:
        kind = "quantised weights" if len(floats) < len(done.tensors) else "weights of the tensors that differ"
        lines.append(
            f"{number(sums.count)} {kind}: SQNR {decibels(sums.sqnr)}{' dB' if sums.squared else ''}, "
            f"MSE {figure(sums.mse)}, max {figure(sums.largest)}, cosine {cosine(sums.cosine)}; "
            f"{number(total.exact)} of {plural(total.blocks, 'block')} exact"
            + (f", {number(total.rounding)} but for rounding" if total.rounding else "")
        )
        if done.broken:
            lines.append(_without(done.broken, len(done.chosen)))
    if floats:
        exact = sum(t.sums.squared == 0 and not t.found.incomparable for t in floats)
        lines.append(f"{plural(len(floats), 'tensor')} float on both sides: {number(exact)} exact")
    return lines


def _without(broken: int, of: int) -> str:
    """What the sums above this line leave out."""
    if broken == of:
        which = "the only tensor is" if of == 1 else f"all {number(of)} tensors are"
        return f"{which} not finite on one side: no sum is a number"
    left = f"over {plural(of - broken, 'finite tensor')}"
    return f"{left}; {plural(broken, 'tensor')} not finite on one side {'is' if broken == 1 else 'are'} in no sum"


def formats(ranking: Ranking) -> list[str]:
    """What became what, the most frequent first."""
    kinds = Counter((t.source_format, t.format) for t in ranking.comparison.tensors)
    return [f"{short(a)} -> {short(b)}: {plural(n, 'tensor')}" for (a, b), n in kinds.most_common()]


def left_out(ranking: Ranking) -> list[str]:
    """What was not compared, one line a reason and side."""
    return _reasons(ranking.comparison.unmatched)


def unread(ranking: Ranking) -> list[str]:
    """What could not be read."""
    return _reasons(ranking.comparison.unread)


def hidden(ranking: Ranking) -> list[str]:
    """Elements that are no number on either side, and tensors that hold no weights."""
    count = sum(t.found.incomparable for t in ranking.comparison.tensors)
    lines = [f"{plural(count, 'weight')} NaN or the same infinity on both sides: in no sum"] if count else []
    ignored = [f"{number(n)} {kind}" for kind, n in sorted(ranking.comparison.ignored.items())]
    return lines + ([f"no weights: {', '.join(ignored)}"] if ignored else [])


def _reasons(items: Sequence[Unmatched]) -> list[str]:
    """One line for each side and reason, tensor names of the reason taken for the same where they say nothing new."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items:
        groups.setdefault((item.side, item.reason.replace(item.tensor, "it")), []).append(item.tensor)
    lines = []
    for (side, reason), tensors in sorted(groups.items(), key=lambda group: -len(group[1]))[:_NAMED]:
        one = f"{side}: {short(tensors[0])}: {visible(reason)}"
        many = f"{side}: {plural(len(tensors), 'tensor')}: {visible(reason)} (first: {short(tensors[0])})"
        lines.append(one if len(tensors) == 1 else many)
    if (rest := len(groups) - _NAMED) > 0:
        lines.append(f"and for {plural(rest, 'further reason')} (--format json lists all)")
    return lines


def footer(ranking: Ranking, width: int | None) -> Iterator[Line]:
    """Verdict, totals, formats, bytes, and what was left out."""
    text, style = verdict(ranking)
    yield from ((Span(part, style),) for part in fold(text, width))
    yield from labelled("Total", totals(ranking), width)
    yield from labelled("Formats", formats(ranking), width)
    yield from labelled("Compared", [f"{size(ranking.comparison.bytes_compared)} of both sides"], width)
    yield from labelled("Ignored", hidden(ranking), width, "faint")
    yield from labelled("Left out", left_out(ranking), width, "warning")
    yield from labelled("Unread", unread(ranking), width, "error")
