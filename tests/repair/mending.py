"""Repairs a folder the way the command does, and looks at what came of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from auditor.audit import Audit, Depth
from auditor.engine import examine
from auditor.finding import Safety, Severity
from auditor.known import Known
from repair.apply import apply
from repair.build import Built, build, plan
from repair.content import piece_of
from repair.fixes.catalogue import ENTRIES
from repair.fixes.desk import Options
from repair.patch import Plan

EVERYTHING = Options(Safety.GUESS, include=frozenset(ENTRIES))


@dataclass
class Mended:
    """One repair: findings before and after, what was planned, the files before."""

    before: Audit
    after: Audit
    built: Built
    plan: Plan
    files: dict[str, bytes]

    def repaired(self) -> set[tuple[str, str]]:
        """Findings that the plan mends wholly."""
        left = {(item.rule, item.tensor) for item in self.built.left}
        return {(r.rule, r.tensor) for r in self.built.repairs} | set(self.built.settled) - left

    def remaining(self) -> set[tuple[str, str]]:
        """Findings left alone, wholly or in part."""
        return {(item.rule, item.tensor) for item in self.built.left}


def serious(audit: Audit) -> set[tuple[str, str]]:
    """(code, tensor) of every warning and error."""
    assert not audit.errors, audit.errors
    return {(f.code, f.tensor) for f in audit.findings if f.severity >= Severity.WARNING}


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the folder."""
    return {p.name: p.read_bytes() for p in sorted(root.iterdir()) if p.is_file()}


def hashes(root: Path) -> dict[str, str]:
    """sha256 of every file of the folder."""
    return {name: hashlib.sha256(raw).hexdigest() for name, raw in contents(root).items()}


def planned(root: Path, options: Options = EVERYTHING, depth: Depth = Depth.FULL) -> tuple[Audit, Built, Plan]:
    """Scan and plan; nothing is written."""
    ctx, audit = examine(root, depth=depth)
    assert not audit.errors, audit.errors
    built = build(ctx, audit.findings, options)
    made = plan(built)
    ctx.close()
    return audit, built, made


def mend(root: Path, options: Options = EVERYTHING, depth: Depth = Depth.FULL) -> Mended:
    """Scan, plan, write, scan: all of it, and only what was written, which must come to the same."""
    files = contents(root)
    before, built, made = planned(root, options, depth)
    if made.touched:
        apply(root, made)
    after = examine(root, depth=depth)[1]
    again = examine(root, depth=depth, known=Known.since(built.desk.ctx, before.findings, made.ranges))[1]
    expect_same(after, again)
    assert again.bytes_read <= after.bytes_read
    assert not set(built.settled) & {(finding.code, finding.tensor) for finding in after.findings}
    return Mended(before, after, built, made, files)


def expect_same(full: Audit, again: Audit) -> None:
    """Two audits say the same, but for how much was read."""
    for name in ("findings", "skipped", "errors", "unread", "checked", "formats", "shards", "tensor_count"):
        assert getattr(full, name) == getattr(again, name), name
    for rows, others in ((full.tensors, again.tensors), (full.layers, again.layers)):
        assert repr(list(rows)) == repr(list(others))  # of NaN, too, which equals nothing


def expect_only_planned(mended: Mended, root: Path) -> None:
    """Every byte that differs is a planned one, and is what was planned."""
    now = contents(root)
    assert now.keys() >= mended.files.keys()
    for name, old in mended.files.items():
        patches = [p for p in mended.plan.patches if p.file == name]
        texts = [t for t in mended.plan.texts if t.file == name]
        expected = bytearray(old)
        for patch in patches:
            expected[patch.offset : patch.end] = piece_of(patch.new, 0, patch.length)
        assert now[name] == (texts[0].new if texts else bytes(expected))
    added = {t.file for t in mended.plan.texts if t.old is None}
    assert now.keys() - mended.files.keys() <= added
