"""Repairs every damaged export of a folder of exports, and prints what came of it as a Markdown page.

    python docs/repairs.py CORPUS > docs/repairs-corpus.md

Each export is copied, scanned, repaired with --risk guess, scanned again, and the repair is taken back.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from auditor.audit import Audit, Depth
from auditor.engine import examine
from auditor.finding import Safety, Severity
from quant.errors import ToolError
from repair.apply import apply, undo
from repair.build import Built, SourceFixes, build, plan, rewrites
from repair.fixes.desk import Options
from repair.outofplace import repaired_copy
from repair.patch import Plan

_GUESS = Options(Safety.GUESS)
_HEAD = """# Repairs of real exports

Every export with a warning or an error, copied, scanned at full depth, repaired and scanned again.
"In place" is `audit repair --risk guess --write`, "copy" is `--out DIR` (shards may be written anew), "source" adds
`--source` with the unquantised model where there is one.  Findings are warnings and errors; what a repair changed was
taken back afterwards, and every file then had the bytes it had before.  Made by `docs/repairs.py`.

| export | findings before | in place: after | bytes | copy: after | source: after | error with source, before → after |
|---|---|---|---|---|---|---|
"""


def serious(audit: Audit) -> Counter[str]:
    """Warnings and errors by code."""
    return Counter(f.code for f in audit.findings if f.severity >= Severity.WARNING)


def shown(counts: Counter[str]) -> str:
    """SCL101 2, GLB102 1; a dash for none."""
    return ", ".join(f"{code}{f' ×{n}' if n > 1 else ''}" for code, n in sorted(counts.items())) or "–"


def planned(root: Path, options: Options, source: Path | None = None) -> tuple[Audit, Built, Plan]:
    """Scan and plan."""
    ctx, audit = examine(root, depth=Depth.FULL)
    try:
        built = build(ctx, audit.findings, options, SourceFixes(source, "auto", ctx) if source else None)
        return audit, built, plan(built)
    finally:
        ctx.close()


def copied(root: Path, work: Path) -> Path:
    """A copy that may be written to."""
    target = work / root.name
    shutil.copytree(root, target)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    return target


def source_of(root: Path) -> Path | None:
    """The unquantised model beside an export, by the corpus' habit of naming."""
    name = root.name
    stems = {"llama": "llama_nvfp4__source", "llmc_llama": "llama_nvfp4__source", "qwen3moe": "qwen3moe_nvfp4__source"}
    own = root.with_name(f"{name}__source")
    if own.is_dir():
        return own
    if any(word in name for word in ("zero", "tiny", "small", "nan_weight")):
        return None
    for stem, source in stems.items():
        if name.startswith(stem) and root.with_name(source).is_dir():
            return root.with_name(source)
    return None


def row(root: Path, work: Path) -> tuple[str, dict[str, str]] | None:
    """One line of the table and what was left, by reason; None for an export without damage."""
    target = copied(root, work)
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    audit, built, made = planned(target, _GUESS)
    if not serious(audit):
        return None
    if made.touched:
        apply(target, made)
    after = serious(examine(target, depth=Depth.FULL)[1])
    if made.touched:
        undo(target)
    if {p.name: p.read_bytes() for p in target.iterdir() if p.is_file()} != before:
        raise SystemExit(f"{root.name}: not what it was after the repair was taken back")
    out = work / f"{root.name}.out"
    _, rewritten, anew = planned(target, Options(Safety.GUESS, rewrite=True))
    repaired_copy(target, anew, out, rewrites(rewritten))
    elsewhere = serious(examine(out, depth=Depth.FULL)[1])
    restored, errors = with_source(target, source_of(root), work)
    nbytes = made.nbytes + sum(len(t.new or b"") for t in made.texts)
    cells = (root.name, shown(serious(audit)), shown(after), f"{nbytes:,}", shown(elsewhere), restored, errors)
    left = {f"{item.rule}: {item.reason}": item.tensor for item in built.left if item.rule in after}
    return "| " + " | ".join(cells) + " |", left


def with_source(target: Path, source: Path | None, work: Path) -> tuple[str, str]:
    """Findings after a repair from the source, and the errors of the restored layers."""
    if source is None:
        return "no source", ""
    try:
        _, built, made = planned(target, Options(Safety.EXACT, rewrite=True), source)
        out = work / f"{target.name}.restored"
        repaired_copy(target, made, out, rewrites(built))
    except ToolError as error:
        return f"refused: {error}", ""
    effects = [e for r in built.repairs if r.safety is Safety.RESTORED for e in r.effects]
    known = [f"{_percent(e.before)} → {_percent(e.after)}" for e in effects if e.after is not None]
    errors = "; ".join(known[:3]) + (f"; and {len(known) - 3} more" if len(known) > 3 else "")
    return shown(serious(examine(out, depth=Depth.FULL)[1])), errors


def _percent(part: float | None) -> str:
    return "NaN" if part is None else f"{100 * part:.2f} %"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    corpus = parser.parse_args().corpus
    sys.stdout.write(_HEAD)
    reasons: dict[str, list[str]] = {}
    for root in sorted(p for p in corpus.iterdir() if p.is_dir() and not p.name.endswith("__source")):
        with tempfile.TemporaryDirectory() as work:
            found = row(root, Path(work))
        if found is not None:
            print(found[0], flush=True)
            for reason in found[1]:
                reasons.setdefault(reason, []).append(root.name)
    print("\n## What is left in place, and why\n")
    for reason, names in sorted(reasons.items()):
        print(f"- {reason} ({', '.join(names)})")


if __name__ == "__main__":
    main()
