"""CFG101, CFG102, CFG103, CFG107, CFG108: the configuration says what the files hold.

Only the values that are wrong change; the rest of the text, its order and its blanks stay.  Where hf_quant_config.json
declares the same method beside config.json, both are edited alike; a stale one of another method is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from auditor.architecture import plain_linears
from auditor.checkpoint import CONFIG
from auditor.declared import Declared
from auditor.finding import Finding, Safety
from auditor.patterns import Matcher
from auditor.rules.cfg103_unquantised_not_excluded import heads
from auditor.rules.cfg108_garbled_pattern import garbled
from repair.fixes import jsontext
from repair.fixes.desk import Desk
from repair.fixes.jsontext import Path
from repair.fixes.proposal import Left, Proposal, TextEdit

Result = Iterator[Proposal | Left]
_NVFP4 = ("NVFP4", "NVFP4_STATIC", "W4A4_NVFP4")
_ONLY = "no weight changes, only what the configuration says of it"


def declarations(desk: Desk) -> Iterator[tuple[Declared, Path]]:
    """Every declaration that is edited together, with the path of its object in its file."""
    first = desk.ctx.declared
    for declared in (first, first.other):
        if declared is None or not declared.file or declared.method != first.method:
            continue
        base: Path = tuple(declared.key.split(".")) if declared.key else ()
        if jsontext.find(desk.text(declared.file), (*base, "quantization")):
            base = (*base, "quantization")
        yield declared, base


def lists(desk: Desk) -> Iterator[tuple[str, Path, list[str]]]:
    """(file, path, entries) of every list of exclusions."""
    for declared, base in declarations(desk):
        for key in dict.fromkeys(pattern.key for pattern in declared.exclude):
            node = jsontext.find(desk.text(declared.file), (*base, key))
            if node is not None and node.kind == "list":
                text = desk.text(declared.file)
                yield declared.file, (*base, key), json.loads(text[node.start : node.end])


def _propose(finding: Finding, desk: Desk, texts: dict[str, str], change: str, safety: Safety = Safety.EXACT) -> Result:
    edits = [TextEdit(file, text.encode()) for file, text in texts.items() if text != desk.text(file)]
    if edits:
        yield Proposal(finding.code, finding.tensor, safety, _ONLY, finding.count, change, edits)


def not_excluded(finding: Finding, desk: Desk) -> Result:
    """CFG103: the modules that are stored unquantised join the list."""
    names = [n.removesuffix(".weight") for n in (finding.tensor, *finding.related)]
    texts: dict[str, str] = {}
    for file, path, entries in lists(desk):
        new = [name for name in names if name not in entries]
        texts[file] = jsontext.add(texts.get(file, desk.text(file)), path, new)
    if not texts:
        for declared, base in declarations(desk):
            key = {"modelopt": "ignore" if declared.file == CONFIG else "exclude_modules"}.get(
                declared.method, "ignore"
            )
            text = texts.get(declared.file, desk.text(declared.file))
            texts[declared.file] = jsontext.put(text, (*base, key), list(names))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    yield from _propose(finding, desk, texts, f"{names[0]}{more} joins the exclusions")


def excluded(finding: Finding, desk: Desk) -> Result:
    """CFG102: the entry leaves the list; unquantised modules that it covered are named instead."""
    layer, declared = desk.layer(finding), desk.ctx.declared
    pattern = declared.exclusion(layer.name) if layer else None
    if pattern is None:
        yield Left(finding.code, finding.tensor, "no algorithm is declared for it, and none is known", finding.count)
        return
    plain = [linear.module for linear in (*plain_linears(desk.ctx), *heads(desk.ctx))]
    texts: dict[str, str] = {}
    for file, path, entries in lists(desk):
        if pattern.text not in entries:
            continue
        rest = [entry for entry in entries if entry != pattern.text]
        before, after = Matcher(entries, declared.dialect), Matcher(rest, declared.dialect)
        bare = [name for name in plain if before.strict(name) is not None and not after.loose(name)]
        text = texts.get(file, desk.text(file))
        for number in reversed([i for i, entry in enumerate(entries) if entry == pattern.text]):
            text = jsontext.drop(text, (*path, number))
        texts[file] = jsontext.add(text, path, sorted(set(bare)))
    yield from _propose(finding, desk, texts, f"{pattern.text!a} leaves the exclusions")


def garbled_names(finding: Finding, desk: Desk) -> Result:
    """CFG108: module names without control characters."""
    texts: dict[str, str] = {}
    changed: list[str] = []
    for declared, base in declarations(desk):
        if declared.file != finding.shard:
            continue
        text = desk.text(declared.file)
        for pattern in declared.exclude:
            node = jsontext.find(text, (*base, pattern.key))
            entries = json.loads(text[node.start : node.end]) if node else []
            if garbled(pattern.text) and pattern.text in entries:
                text = jsontext.put(text, (*base, pattern.key, entries.index(pattern.text)), pattern.mended)
                changed.append(pattern.mended)
        for name in declared.layers:
            if garbled(name):
                mended = type(declared.exclude[0])(name, "", "").mended if declared.exclude else name.strip()
                text = jsontext.rename(text, (*base, "quantized_layers", name), mended)
                changed.append(mended)
        texts[declared.file] = text
    if changed:
        yield from _propose(finding, desk, texts, f"{len(changed)} names, the first becomes {changed[0]!a}")
    else:
        reason = "the declaration is of another method than the one that loaders read: stale"
        yield Left(finding.code, finding.tensor, reason, finding.count)


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
    """CFG101: weights are declared quantised and activations are not, or dynamically."""
    if finding.fix is None:
        yield Left(finding.code, finding.tensor, "the method has no name for what is stored: calibrate again")
        return
    method, fp4 = desk.ctx.declared.method, all(layer.format.is_fp4() for layer in desk.ctx.layers)
    texts: dict[str, str] = {}
    for declared, base in declarations(desk):
        text = texts.get(declared.file, desk.text(declared.file))
        if method == "modelopt" and declared.mixed:
            for name, algorithm in declared.layers.items():
                if algorithm.name in _NVFP4:
                    text = jsontext.put(text, (*base, "quantized_layers", name, "quant_algo"), "W4A16_NVFP4")
        elif method == "modelopt":
            text = jsontext.put(text, (*base, "quant_algo"), "W4A16_NVFP4")
        elif method in ("fp8", "deepseek_v4_fp8"):
            text = jsontext.put(text, (*base, "activation_scheme"), "dynamic")
        groups = jsontext.find(text, (*base, "config_groups"))
        for key in groups.parts if groups else ():
            inputs: Path = (*base, "config_groups", key, "input_activations")
            node = jsontext.find(text, inputs)
            if node is None or node.kind != "object":
                continue
            text = jsontext.put(text, inputs, None) if fp4 else jsontext.put(text, (*inputs, "dynamic"), True)
        texts[declared.file] = text
    yield from _propose(finding, desk, texts, finding.fix.note)
