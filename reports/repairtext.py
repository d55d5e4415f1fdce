"""A repair in words: what is planned, what is left and why, what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from auditor.finding import Safety
from reports import summary
from reports.escape import short, typed, visible
from reports.layout import Line, Span, cells, fold, fold_name, labelled, pad
from reports.quantity import number, plural, size
from reports.report import EVERYTHING, Terms

if TYPE_CHECKING:
    from repair.build import Built, Repair
    from repair.effect import Effect
    from repair.fixes.proposal import Left
    from repair.layerchange import LayerChange
    from repair.ledger import Entry
    from repair.patch import Plan
    from reports.jsontext import Json

SHOWN = 40  # repairs listed on a terminal; JSON and --plan have all
_REASONS = 12  # reasons listed for what is left
_STYLE = {Safety.EXACT: "fix", Safety.RESTORED: "fix", Safety.BOUNDED: "info", Safety.GUESS: "warning"}


@dataclass(frozen=True)
class Done:
    """What a repair that was carried out did.

    ``errors``: how many a new scan still finds; ``checkpoint``: as it was named; ``where``: the copy, "" in place.
    """

    entry: str
    proof: str
    seconds: float
    errors: int
    gone: int
    fresh: tuple[str, ...] = ()
    where: str = ""
    checkpoint: str = ""


def planned(
    built: Built, plan: Plan, width: int | None, limit: int | None = None, terms: Terms = EVERYTHING
) -> Iterator[Line]:
    """Every repair: safety, rule, tensor; below it what becomes what, and the error it makes or mends.

    ``terms``: the rules that did not look for anything to mend.
    """
    rows = built.repairs
    for repair in rows[:limit]:
        yield from _repair(repair, width)
    if limit is not None and len(rows) > limit:
        yield (Span(f"... and {number(len(rows) - limit)} more (--format json or --plan FILE lists all)", "faint"),)
    if rows:
        yield ()
    yield from left(built, width)
    yield from labelled("Settings", summary.settings(terms), width, "warning")
    yield from _folded(_total(built, plan), width, "strong")


def _repair(repair: Repair, width: int | None) -> Iterator[Line]:
    head = (
        Span(pad(repair.safety.label, 9), _STYLE[repair.safety]),
        Span(f"{visible(repair.rule)}  ", "strong"),
    )
    used = sum(cells(span.text) for span in head)
    name = repair.tensor
    parts = fold_name(short(name), width - used if width else None)
    yield (*head, Span(parts[0], "name"))
    for part in parts[1:]:
        yield Span(" " * used), Span(part, "name")
    details = f"{plural(repair.places, 'place')}: {repair.change}"
    if repair.group:
        details = f"{repair.group}: {repair.change}"
    for text, style in ((details, ""), (error(repair.effects), ""), (repair.reason, "faint")):
        for part in fold(visible(text), width - 9 if width else None) if text else ():
            yield Span(" " * 9), Span(part, style)


def error(effects: Sequence[Effect]) -> str:
    """Predicted errors of the layers that a repair touches, "" where weights do not change."""
    shown = []
    for effect in effects[:4]:
        leaf = f"{effect.layer.rpartition('.')[2]} " if len(effects) > 1 else ""
        if effect.before is None or effect.after is None:
            shown.append(f"{leaf}{effect.note}")
            continue
        more = f" ({effect.note})" if effect.note else ""
        shown.append(f"{leaf}error {percent(effect.before)} -> {percent(effect.after)} of {effect.of}{more}")
    if len(effects) > 4:
        shown.append(f"and {plural(len(effects) - 4, 'more layer')}")
    return "; ".join(shown)


def percent(part: float) -> str:
    """A relative error as a percentage of three digits."""
    if part == 0:
        return "0"
    value = 100 * part
    return f"{value:.3g} %" if 0.001 <= value < 1000 else f"{value:.2e} %"


def left(built: Built, width: int | None) -> Iterator[Line]:
    """What is not repaired, one line a rule and reason."""
    copied = set(map(id, built.copied))
    yield from _reasons("Mended only in a copy (--out DIR --write):", built.copied, width)
    yield from _reasons("Left as they are:", [item for item in built.left if id(item) not in copied], width)


def _reasons(title: str, items: Sequence[Left], width: int | None) -> Iterator[Line]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items:
        groups.setdefault((item.rule, item.reason), []).append(item.tensor)
    if groups:
        yield (Span(title, "strong"),)
    for (rule, reason), tensors in list(groups.items())[:_REASONS]:
        name = short(tensors[0])
        which = name if len(tensors) == 1 else f"{plural(len(tensors), 'finding')}, first {name}"
        parts = fold(f"{visible(which)}: {visible(reason)}", width - 10 if width else None)
        yield Span(pad(f"  {visible(rule)}", 10), "strong"), Span(parts[0])
        for part in parts[1:]:
            yield Span(" " * 10), Span(part)
    if len(groups) > _REASONS:
        rest = sum(len(t) for t in list(groups.values())[_REASONS:])
        yield (Span(f"  ... and {number(rest)} more (--format json lists all)", "faint"),)
    if groups:
        yield ()


def _total(built: Built, plan: Plan) -> str:
    """How much would change, and what a higher risk would add."""
    if not built.repairs:
        text = "Nothing to repair" if not built.left else "Nothing to repair at this risk"
    else:
        counts = [
            f"{number(n)} {safety.label}" for safety in Safety if (n := sum(r.safety is safety for r in built.repairs))
        ]
        files = plural(len(plan.touched), "file")
        text = f"{plural(len(built.repairs), 'repair')} ({', '.join(counts)}): {size(plan.total)} in {files}"
    more = [f"{number(n)} more with --risk {safety.label}" for safety, n in sorted(built.wider.items())]
    more += [f"{number(len(built.copied))} more with --out DIR --write"] * bool(built.copied)
    return ", ".join([text, *more]) + "."


def _folded(text: str, width: int | None, style: str = "") -> Iterator[Line]:
    for part in fold(visible(text), width):
        yield (Span(part, style),)


def unwritten(width: int | None, copy: bool = False) -> Iterator[Line]:
    """The reminder that this was a dry run; ``copy``: of a repaired copy."""
    way = "--write makes the copy." if copy else "--write carries it out; audit undo takes it back."
    yield from _folded(f"Nothing was written.  {way}", width, "faint")


def done(plan: Plan, outcome: Done, width: int | None) -> Iterator[Line]:
    """What was written and what a new scan says of it."""
    where = f" to {outcome.where}" if outcome.where else ""
    changed = f": {size(plan.total)} in {plural(len(plan.touched), 'file')}" if plan.touched else ""
    yield from _folded(f"Written{where}{changed}.", width, "strong")
    if outcome.proof:
        yield from _folded(f"Verified: {outcome.proof}.", width)
    gone = f"Scanned again: {plural(outcome.gone, 'finding')} gone"
    if outcome.fresh:
        gone += f", {len(outcome.fresh)} new: {', '.join(outcome.fresh[:4])}"
    gone += f", {plural(outcome.errors, 'error')} left." if outcome.errors else ", no errors left."
    yield from _folded(gone, width)
    if outcome.entry:
        command = f"audit undo {typed(outcome.checkpoint)} --entry {outcome.entry}"
        yield from _folded(f"To take it back: {command}", width, "faint")


def layers(rows: Sequence[LayerChange], width: int | None, limit: int | None = SHOWN) -> Iterator[Line]:
    """A table: by what each touched layer was changed, in how many bytes, and its error before and after."""
    if not rows:
        return
    head = ("BYTES", "ERROR BEFORE -> AFTER", "BY", "LAYER")
    table = [(number(r.nbytes), _errors(r.effects), visible(",".join(r.rules)), short(r.layer)) for r in rows[:limit]]
    wide = [max(cells(line[i]) for line in (head, *table)) for i in range(3)]
    yield tuple(Span(pad(text, wide[i] + 2) if i < 3 else text, "faint") for i, text in enumerate(head))
    used = sum(wide) + 6
    for nbytes, change, by, layer in table:
        start = "  ".join((" " * (wide[0] - cells(nbytes)) + nbytes, pad(change, wide[1]), pad(by, wide[2]))) + "  "
        for at, part in enumerate(fold_name(layer, max(20, width - used) if width else None)):
            yield Span(start if at == 0 else " " * used), Span(part, "name")
    if limit is not None and len(rows) > limit:
        yield (Span(f"... and {plural(len(rows) - limit, 'more layer')}", "faint"),)
    yield ()


def _errors(effects: Sequence[Effect]) -> str:
    """The errors of one layer, worst first; "-" where no weight changes."""
    shown = []
    for effect in effects:
        before = "NaN" if effect.before is None else percent(effect.before)
        after = "unknown" if effect.after is None else percent(effect.after)
        shown.append(f"{before} -> {after}")
    return ", ".join(dict.fromkeys(shown)) or "-"


def entries(recorded: Sequence[Entry], width: int | None) -> Iterator[Line]:
    """The recorded repairs and undos, oldest first."""
    if not recorded:
        yield (Span("No repair is recorded here."),)
        return
    for entry in recorded:
        what = entry.kind or "unreadable"
        if entry.of is not None:
            what = f"undo of {entry.of}"
        text = f"{when(entry.mtime_ns)}  {plural(entry.records, 'record')} in {', '.join(map(short, entry.files))}"
        rules = ", ".join(f"{visible(rule)} {number(count)}" for rule, count in entry.rules.items())
        state = entry.state if entry.undone_by is None else f"undone by {entry.undone_by}"
        style = "" if entry.state == "complete" else "error"
        head = (Span(f"{entry.number:4d}  ", "strong"), Span(pad(what, 12), "name"), Span(pad(state, 14), style))
        if width is None:
            yield (*head, Span(f"{text}: {rules}"))
            continue
        yield head
        for part in fold(f"{text}: {rules}", width - 6):
            yield Span(" " * 6), Span(part)
        for part in fold(visible(entry.problem), width - 6) if entry.problem else ():
            yield Span(" " * 6), Span(part, "error")


def when(mtime_ns: int) -> str:
    """A time as people read it, in UTC."""
    return datetime.fromtimestamp(mtime_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def entry_fields(entry: Entry) -> dict[str, Json]:
    """A recorded repair for JSON."""
    return {
        "entry": entry.number,
        "kind": entry.kind,
        "state": entry.state,
        "of": entry.of,
        "undone_by": entry.undone_by,
        "files": list(entry.files),
        "records": entry.records,
        "rules": dict(entry.rules),
        "completed": when(entry.mtime_ns),
        "problem": entry.problem,
    }


def listed(plan: Plan, limit: int = SHOWN) -> Iterator[Line]:
    """The patches of a plan, one a line."""
    for patch in plan.patches[:limit]:
        text = f"{patch.rule} {patch.tensor}"
        yield Span(pad(f"{patch.length} B at {patch.offset}", 24) + "  "), Span(short(text), "name")
    if len(plan.patches) > limit:
        yield (Span(f"... and {number(len(plan.patches) - limit)} more", "faint"),)
    for replaced in plan.texts:
        yield Span(pad("whole file", 24) + "  "), Span(f"{replaced.rule} {short(replaced.file)}", "name")
    if plan.skipped:
        reasons = Counter(skipped.reason for skipped in plan.skipped).most_common(_REASONS)
        yield (Span(f"Not in it: {plural(len(plan.skipped), 'finding')}", "strong"),)
        for reason, count in reasons:
            yield Span(pad(f"  {number(count)}", 8)), Span(visible(reason[:400]), "faint")
    yield ()


def taken_back(plan: Plan, width: int | None) -> Iterator[Line]:
    """What an undo would put back."""
    yield from listed(plan)
    total = f"{size(plan.total)} in {plural(len(plan.touched), 'file')} would be put back; nothing was changed."
    yield from _folded(total, width, "strong")
