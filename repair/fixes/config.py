"""CFG101, CFG102, CFG103, CFG107, CFG108: the configuration says what the files hold.

Only the values that are wrong change; the rest of the text, its order and its blanks stay.  What a fix works on is the
text as the fixes before it left it, so that names are compared as they will be.  Where hf_quant_config.json
declares the same method beside config.json, both are edited alike; a stale one of another method is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from auditor.architecture import generalised, module_of, plain_linears
from auditor.checkpoint import CONFIG
from auditor.declared import Declared, mended
from auditor.finding import Finding, Safety
from auditor.patterns import Dialect, Matcher
from auditor.rules.cfg101_no_input_scale import changes, lacking
from auditor.rules.cfg103_unquantised_not_excluded import nameable, unlisted
from auditor.rules.cfg108_garbled_pattern import garbled, renamed
from repair.fixes import jsontext
from repair.fixes.desk import Desk
from repair.fixes.jsontext import Json, Path
from repair.fixes.proposal import Left, Proposal, TextEdit

Result = Iterator[Proposal | Left]
_ONLY = "no weight changes, only what the configuration says of it"


class Listed(NamedTuple):
    """A list of exclusions as it will be; its entries mended, "" for what is not a string."""

    file: str
    path: Path
    entries: list[str]
    dialect: Dialect


def declarations(desk: Desk) -> Iterator[tuple[Declared, Path]]:
    """Every declaration that is edited together, with the path of its object in its file."""
    for declared in desk.ctx.declared.together:
        if declared.file:
            yield declared, declared.path


def value(text: str, path: Path) -> Json:
    """The value under a path of keys, None where there is none."""
    node = jsontext.find(text, path)
    return json.loads(text[node.start : node.end]) if node else None


def lists(desk: Desk) -> Iterator[Listed]:
    """Every list of exclusions."""
    for declared, base in declarations(desk):
        for key in declared.exclude_keys:
            entries = value(desk.text(declared.file), (*base, key))
            if isinstance(entries, list):
                names = [mended(entry) if isinstance(entry, str) else "" for entry in entries]
                yield Listed(declared.file, (*base, key), names, declared.dialect)


def _propose(
    finding: Finding, desk: Desk, texts: dict[str, str], change: str, safety: Safety = Safety.EXACT, places: int = 0
) -> Result:
    edits = [TextEdit(file, text.encode()) for file, text in texts.items() if text != desk.text(file)]
    if edits:
        yield Proposal(finding.code, finding.tensor, safety, _ONLY, places or finding.count, change, edits)


def _more(names: Sequence[str]) -> str:
    return f"{names[0]!a} and {len(names) - 1} more" if len(names) > 1 else f"{names[0]!a}"


def not_excluded(finding: Finding, desk: Desk) -> Result:
    """CFG103: the modules that are stored unquantised join the list that loaders read."""
    members = list(unlisted(desk.ctx, generalised(finding.layer)))
    names = nameable(desk.ctx.declared, members)
    if len(names) < len(members):
        reason = "no list is there that could name it, or its name cannot be written as one"
        yield Left(finding.code, finding.tensor, reason, len(members) - len(names))
    if not names:
        return
    texts: dict[str, str] = {}
    for declared, base in declarations(desk):
        for key in declared.exclude_lists:
            text = texts.get(declared.file, desk.text(declared.file))
            path = (*base, key)
            held = value(text, path)
            if not isinstance(held, list):
                texts[declared.file] = jsontext.put(text, path, list(names))
                continue
            known = Matcher([mended(entry) for entry in held if isinstance(entry, str)], declared.dialect)
            texts[declared.file] = jsontext.add(text, path, [n for n in names if known.strict(n) is None])
    change = f"{_more(names)} {'joins' if len(names) == 1 else 'join'} the exclusions"
    yield from _propose(finding, desk, texts, change, places=len(names))


def excluded(finding: Finding, desk: Desk) -> Result:
    """CFG102: every entry that excludes the layers leaves its list; unquantised modules that it covered are named."""
    layer, declared = desk.layer(finding), desk.ctx.declared
    pattern = declared.exclusion(layer.name) if layer else None
    if pattern is None:
        yield Left(finding.code, finding.tensor, "no algorithm is declared for it, and none is known", finding.count)
        return
    if not isinstance(declared.source.get(pattern.key), list):
        yield Left(finding.code, finding.tensor, f"{pattern.key} is not a list of names", finding.count)
        return
    names = [x.name for x in desk.ctx.layers if (p := declared.exclusion(x.name)) and p.text == pattern.text]
    plain = {linear.module for linear in plain_linears(desk.ctx)}
    plain |= {module_of(ref) for ref in desk.ctx.recognised.plain if len(ref.shape) > 1}
    texts: dict[str, str] = {}
    gone: dict[str, None] = {}
    for one in lists(desk):
        numbers = excluding(one, names)
        if not numbers:
            continue
        rest = [entry for number, entry in enumerate(one.entries) if number not in numbers]
        before, after = Matcher(one.entries, one.dialect), Matcher(rest, one.dialect)
        bare = sorted(n for n in plain if before.strict(n) is not None and not after.loose(n))
        if excluding(one._replace(entries=rest + bare), names):
            reason = "an unquantised module that its entry covers cannot be named without it"
            yield Left(finding.code, finding.tensor, reason, finding.count)
            return
        text = texts.get(one.file, desk.text(one.file))
        texts[one.file] = jsontext.add(jsontext.drop(text, one.path, numbers), one.path, bare)
        gone |= dict.fromkeys(one.entries[number] for number in sorted(numbers))
    if gone:
        change = f"{_more(list(gone))} {'leaves' if len(gone) == 1 else 'leave'} the exclusions"
        yield from _propose(finding, desk, texts, change)


def excluding(one: Listed, names: Sequence[str]) -> set[int]:
    """The numbers of all entries by which some of these modules are excluded."""
    left = dict(enumerate(one.entries))
    while True:
        numbers, matcher = list(left), Matcher(list(left.values()), one.dialect)
        hits = {numbers[hit] for name in names if (hit := matcher.strict(name)) is not None}
        if not hits:
            return set(range(len(one.entries))) - left.keys()
        for number in hits:
            del left[number]


def garbled_names(finding: Finding, desk: Desk) -> Result:
    """CFG108: module names without control characters; what is no name without them, or is there already, goes."""
    texts: dict[str, str] = {}
    written: list[str] = []
    gone: list[str] = []
    for declared, base in declarations(desk):
        if declared.file != finding.shard:
            continue
        text = desk.text(declared.file)
        for key in declared.exclude_keys:
            entries = value(text, (*base, key))
            held = entries if isinstance(entries, list) else []
            new = {n: mended(entry) for n, entry in enumerate(held) if isinstance(entry, str) and garbled(entry)}
            text = jsontext.replace(text, {(*base, key, number): name for number, name in new.items()})
            text = jsontext.drop(text, (*base, key), [number for number, name in new.items() if not name])
            written += filter(None, new.values())
            gone += [str(held[number]) for number, name in new.items() if not name]
        table = value(text, (*base, "quantized_layers")) if declared.mixed else None
        if isinstance(table, dict):
            path, names = (*base, "quantized_layers"), renamed(table)
            dropped = [old for old, name in names.items() if not name]
            text = jsontext.drop(text, path, dropped)
            text = jsontext.rename(text, path, {old: name for old, name in names.items() if name})
            written += filter(None, names.values())
            gone += dropped
        texts[declared.file] = text
    words = [f"{len(written)} name{'s' * (len(written) > 1)}, the first becomes {written[0]!a}"] if written else []
    words += [f"{_more(gone)} {'goes' if len(gone) == 1 else 'go'}"] if gone else []
    done = len(written) + len(gone)
    if done:
        yield from _propose(finding, desk, texts, "; ".join(words), places=done)
    if done < finding.count:
        reason = "the name without them is there already with another value, or stands in no list or table"
        if not texts:
            reason = "the declaration is of another method than the one that loaders read: stale"
        yield Left(finding.code, finding.tensor, reason, finding.count - done)


def tied(finding: Finding, desk: Desk) -> Result:
    """CFG107: tie_word_embeddings says what the files hold."""
    if finding.fix is None:
        return
    exact = finding.fix.safety is Safety.EXACT
    text = desk.text(CONFIG)
    for path in (
        ("tie_word_embeddings",),
        ("text_config", "tie_word_embeddings"),
        ("llm_config", "tie_word_embeddings"),
    ):
        node = jsontext.find(text, path)
        if node is not None and text[node.start : node.end] == ("true" if exact else "false"):
            text = jsontext.put(text, path, not exact)
    change = f"tie_word_embeddings {'true -> false' if exact else 'false -> true'}"
    yield from _propose(finding, desk, {CONFIG: text}, change, finding.fix.safety)


def no_activations(finding: Finding, desk: Desk) -> Result:
    """CFG101: the layers of one algorithm are declared without stored activation scales."""
    role = desk.ctx.recognised.roles.get(finding.related[0]) if finding.related else None
    algorithm = desk.ctx.declared.algo_for(role[0].name) if role else None
    layers = lacking(desk.ctx).get(algorithm, []) if algorithm else []
    if finding.fix is None or not layers:
        yield Left(finding.code, finding.tensor, "the method has no name for what is stored: calibrate again")
        return
    texts: dict[str, str] = {}
    for declared, base in declarations(desk):
        text = texts.get(declared.file, desk.text(declared.file))
        values: dict[Path, Json] = {}
        for path, new in changes(declared, layers).items():
            as_is = jsontext.find(text, (*base, *path)) is not None
            values[(*base, *(path if as_is else map(mended, path)))] = new
        texts[declared.file] = jsontext.replace(text, values)
    yield from _propose(finding, desk, texts, finding.fix.note)
