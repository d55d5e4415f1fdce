"""What `audit requantize` does, in words: a table of the kinds of weights, what stays as it is, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from reports.comparetext import decibels, figure
from reports.escape import short, visible
from reports.layout import Line, Span, fold, fold_name, labelled
from reports.quantity import number, plural, size

if TYPE_CHECKING:
    from repair.make.folder import Made
    from repair.make.recipe import Recipe
    from repair.make.requantise import Plan
    from repair.make.requantise_row import Kind

SHOWN = 40  # rows on a terminal
NARROW = 110  # columns below which a name has a line of its own
_PLANNED = (("MODULES", 7), ("BYTES", 18))
_DONE = (("MODULES", 7), ("METHOD", 6), ("AMAX", 17), ("SQNR dB", 7), ("MSE", 9), ("BYTES", 18))


def recipes(known: Mapping[str, Recipe], width: int | None) -> Iterator[Line]:
    """The recipes that come with the tool."""
    for name, recipe in known.items():
        yield (Span(name, "strong"),)
        yield from ((Span("    " + part),) for part in fold(recipe.description, width - 4 if width else None))


def planned(plan: Plan, width: int | None, limit: int | None) -> Iterator[Line]:
    """What a recipe selects: each kind of weight, and why the others stay."""
    yield from _table(_PLANNED, [(kind.name, _planned(kind)) for kind in plan.kinds], width, limit)
    yield ()
    yield from left(plan, width, limit)
    total = plan.total
    yield from labelled("Planned:", [f"{plural(total.modules, 'module')}, {_change(total)}; nothing is written"], width)
    yield from _notes(plan, width)


def done(
    plan: Plan, made: Made, rows: Sequence[Kind], total: Kind, width: int | None, limit: int | None
) -> Iterator[Line]:
    """What became of each kind of weight, what stayed, and the totals."""
    yield from _table(_DONE, [(kind.name, _done(kind)) for kind in rows], width, limit)
    yield ()
    yield from left(plan, width, limit)
    errors = total.errors
    said = f"{plural(total.modules, 'module')} in NVFP4, {_change(total)}; SQNR {decibels(errors.sqnr)} dB, "
    yield from labelled("Made:", [said + f"MSE {figure(errors.mse)}"], width)
    files = f"{plural(made.shards, 'shard')}, {size(made.nbytes)}, and {plural(len(made.carried.files), 'other file')}"
    again = f"; {number(made.resumed)} of them made earlier" if made.resumed else ""
    yield from labelled("Written:", [f"{made.folder}: {files}{again}"], width)
    if made.carried.left_out:
        yield from labelled("Not taken:", [visible(name) for name in made.carried.left_out], width)
    yield from _notes(plan, width)


def left(plan: Plan, width: int | None, limit: int | None) -> Iterator[Line]:
    """Matrices that stay as they are, by kind and reason."""
    counts = Counter((one.kind, one.reason) for one in plan.found.left)
    said = [f"{number(n)} x {short(kind)}: {visible(reason)}" for (kind, reason), n in sorted(counts.items())]
    if limit is not None and len(said) > limit:
        said = [*said[:limit], f"... and {plural(len(said) - limit, 'more kind')}"]
    if said:
        yield from labelled("Left:", said, width)


def _notes(plan: Plan, width: int | None) -> Iterator[Line]:
    if plan.notes:
        yield from labelled("Note:", list(plan.notes), width)


def _table(
    heads: Sequence[tuple[str, int]], rows: Sequence[tuple[str, Sequence[str]]], width: int | None, limit: int | None
) -> Iterator[Line]:
    """Rows of figures and a name; on a narrow terminal the name, and the figures below it, each with its head."""
    stacked = width is not None and width < NARROW
    if not stacked:
        yield (Span("  ".join(head.rjust(wide) for head, wide in heads) + "  WEIGHTS", "faint"),)
    for name, figures in rows[:limit]:
        if stacked and width is not None:
            yield from ((Span(part, "name"),) for part in fold_name(short(name), width))
            told = ", ".join(f"{head} {text}" for (head, _), text in zip(heads, figures, strict=True))
            yield from ((Span("    " + part),) for part in fold(told, width - 4))
            continue
        cells = "  ".join(text.rjust(wide) for text, (_, wide) in zip(figures, heads, strict=True))
        used = sum(wide + 2 for _, wide in heads)
        for at, part in enumerate(fold_name(short(name), width - used if width else None)):
            yield Span(cells if at == 0 else " " * (used - 2)), Span("  "), Span(part, "name")
    if limit is not None and len(rows) > limit:
        said = f"... and {plural(len(rows) - limit, 'more kind')} (--format json lists all)"
        yield from ((Span(part, "faint"),) for part in fold(said, width))


def _planned(kind: Kind) -> tuple[str, ...]:
    return number(kind.modules), _change(kind)


def _done(kind: Kind) -> tuple[str, ...]:
    low, high = (figure(value) for value in kind.amax)
    amax = low if low == high else f"{low} .. {high}"
    errors = kind.errors
    return number(kind.modules), kind.method, amax, decibels(errors.sqnr), figure(errors.mse), _change(kind)


def _change(kind: Kind) -> str:
    return f"{size(kind.bytes_in)} -> {size(kind.bytes_out)}"
