"""From findings to a plan: every fixable finding becomes patches, or is skipped with its reason.

The same checkpoint and the same options give the same plan, whatever the order in which findings came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from auditor.context import Context
from auditor.finding import Finding, Safety, Severity
from auditor.layer import QuantizedLayer
from quant.errors import NumericError
from repair.content import Content, Mapped, Shared, Stored, length_of
from repair.effect import Effect
from repair.fixes.catalogue import ENTRIES, RANK
from repair.fixes.desk import Desk, Options
from repair.fixes.index import index_file, rebuilt
from repair.fixes.overlay import HELD
from repair.fixes.proposal import Edit, Left, NewTensor, Proposal, Rescale, TextEdit
from repair.layerchange import measure_against
from repair.patch import Patch, Plan, Skipped, TextPatch, plan_for
from repair.rewrite import Change, New

if TYPE_CHECKING:
    from repair.restore_habits import Habits


class Repair(NamedTuple):
    """What is planned for one finding, or for a part of it."""

    rule: str
    tensor: str
    safety: Safety
    reason: str
    places: int
    change: str
    layers: tuple[str, ...]
    effects: tuple[Effect, ...]
    group: str = ""


@dataclass
class Built:
    """A plan with its reasons.  ``settled``: findings that another finding's repair mends, with its rule."""

    desk: Desk
    repairs: list[Repair] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    settled: list[tuple[str, str]] = field(default_factory=list)
    wider: dict[Safety, int] = field(default_factory=dict)  # what a higher risk would mend besides
    copied: list[Left] = field(default_factory=list)  # of ``left``: what is mended in a copy only
    against: dict[str, Effect] = field(default_factory=dict)  # errors of touched layers against the source, by name


class SourceFixes:
    """Repairs from the unquantised checkpoint, for the findings that it can mend.

    ``method``: amax or mse, how scales are chosen; by default as the exporter was in the habit of doing.
    """

    def __init__(self, path: str | Path, method: str, ctx: Context) -> None:
        """Open the source; raises CheckpointError when it cannot be read."""
        from repair.source import Source

        self.method = method
        self.layers = ctx.layers
        self.source = Source(path, ctx.checkpoint, ctx.recognised)
        self._habits: Habits | None = None

    def proposals(self, finding: Finding, desk: Desk) -> Iterator[Proposal | Left] | None:
        """The repair of a finding; None where the source has nothing to say about it."""
        from repair.restore_findings import CODES, proposals

        return proposals(finding, desk, self._known(desk)) if finding.code in CODES else None

    def _known(self, desk: Desk) -> Habits:
        from repair.restore_habits import Habits
        from repair.restore_recipes import Choice

        if self._habits is None:
            self._habits = Habits(self.source, desk, self.layers, Choice(self.method))
        return self._habits

    def expect_fit(self, layer: QuantizedLayer, desk: Desk) -> None:
        """Raise RepairError unless the layer was made from this source, as far as its codes tell."""
        from repair.restore_evidence import require_source

        require_source(layer, self._known(desk))

    def mends(self, finding: Finding) -> bool:
        """Whether the finding is of a kind that a source mends."""
        from repair.restore_findings import CODES

        return finding.code in CODES

    def close(self) -> None:
        """Close the source's files."""
        self.source.close()


def build(ctx: Context, findings: Sequence[Finding], options: Options, source: SourceFixes | None = None) -> Built:
    """Plan the repair of these findings; from the source first, where there is one."""
    built, silent = Built(Desk(ctx, options, tuple(findings))), []
    for finding in sorted(findings, key=_order):
        if finding.fix is None and finding.severity is Severity.INFO:
            continue
        items = 0
        for item in _proposals(finding, built.desk, source):
            items += 1
            _take(item, built, options)
        if not items:
            silent.append(finding)
    _settle(built, silent)
    _index_new(built.desk)
    if source is not None:
        measure_against(built, source)
    return built


def _settle(built: Built, findings: Sequence[Finding]) -> None:
    """Findings whose fix had nothing to do: other repairs changed what they are about, or they are left."""
    desk = built.desk
    texts = {ENTRIES[rule].mend for edit in desk.texts.values() for rule in edit.rule.split("+")}
    left = {item.tensor for item in built.left}
    whole = {name for _, name in desk.done} & {name for repair in built.repairs for name in repair.layers}
    for finding in findings:
        layer = desk.layer(finding)
        names = (finding.tensor, *finding.related)
        refs = [ref for name in names if (ref := desk.ref(name))]
        changed = any(desk.overlay.touched(ref) or ref.name in desk.tensors for ref in refs)
        changed |= layer is not None and layer.name in whole
        if changed or (finding.code in ENTRIES and ENTRIES[finding.code].mend in texts):
            built.settled.append((finding.code, finding.tensor))
            continue
        waits = any(name in left for name in names)
        reason = "waits for the other findings of its tensors" if waits else "no repair of it is known as the files are"
        built.left.append(Left(finding.code, finding.tensor, reason, finding.count))


def _index_new(desk: Desk) -> None:
    """Where tensors are added or change their size, the index says so."""
    checkpoint = desk.ctx.checkpoint
    file = index_file(checkpoint)
    resized = {n: t for n, t in desk.tensors.items() if t.beside or length_of(t.content) != t.like.nbytes}
    unusable = file not in desk.texts if checkpoint.index is None else bool(checkpoint.index.problem)
    if unusable or not resized:
        return
    text = rebuilt(desk.text(file), checkpoint, resized)
    first = next(iter(resized.values()))
    reason = f"{len(resized)} tensors are added or have another size"
    by = Proposal("FIL110", first.name, Safety.EXACT, reason, len(resized), "", ())
    desk.rewrite(TextEdit(file, text.encode()), by)


def rewrites(built: Built) -> dict[str, dict[str, Change]]:
    """What becomes of the tensors of shards that are written anew, by shard and tensor."""
    found: dict[str, dict[str, Change]] = {}
    for made in built.desk.tensors.values():
        shard = found.setdefault(made.like.shard, {})
        known = shard.get(made.like.name, Change())
        if made.beside:
            new = New(made.name, made.dtype, made.shape, made.content)
            shard[made.like.name] = known._replace(beside=(*known.beside, new))
        else:
            shard[made.like.name] = known._replace(dtype=made.dtype, shape=made.shape, content=made.content)
    return found


def _order(finding: Finding) -> tuple[int, str, str, str]:
    return RANK.get(finding.code, len(RANK)), finding.code, finding.tensor, finding.message


def _proposals(finding: Finding, desk: Desk, source: SourceFixes | None) -> Iterator[Proposal | Left]:
    """The source's repair; where it has none for the finding, the one that needs no source."""
    restored = list(source.proposals(finding, desk) or ()) if source else []
    if source is not None and (
        (not restored and source.mends(finding)) or any(isinstance(r, Proposal) for r in restored)
    ):
        yield from restored
        return
    yield from restored
    for item in _without(finding, desk):
        if isinstance(item, Proposal) or not restored:  # what the source says of the rest is said already
            yield item


def _without(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    entry = ENTRIES.get(finding.code)
    if entry is None:
        yield Left(finding.code, finding.tensor, _unfixable(finding), finding.count)
    elif (entry.asked or finding.severity is Severity.INFO) and finding.code not in desk.options.include:
        if finding.fix is not None:
            reason = f"made only when asked for, --include {finding.code}: {finding.fix.note}"
            yield Left(finding.code, finding.tensor, reason, finding.count)
        else:
            yield Left(finding.code, finding.tensor, _unfixable(finding), finding.count)
    else:
        try:
            yield from entry.mend(finding, desk)
        except NumericError as error:
            yield Left(finding.code, finding.tensor, str(error), finding.count)


def _unfixable(finding: Finding) -> str:
    if finding.fix is None:
        return "no repair is known: see `audit explain`"
    if finding.fix.safety is Safety.RESTORED:
        return f"needs the unquantised checkpoint (--source): {finding.fix.note}"
    return f"not repaired by this version: {finding.fix.note}"


def _take(item: Proposal | Left, built: Built, options: Options) -> None:
    """Accept a proposal the risk allows; otherwise it is left, with what it would take."""
    if isinstance(item, Left):
        built.left.append(item)
        return
    changes = item.changes
    if isinstance(changes, tuple) and any(isinstance(c, NewTensor) for c in changes) and not options.rewrite:
        too = f" --risk {item.safety.label}" if item.safety > max(options.risk, Safety.RESTORED) else ""
        reason = f"mended only in a copy, with --out DIR --write{too}: the shard's header changes ({item.reason})"
        built.copied.append(Left(item.rule, item.tensor, reason, item.places))
        built.left.append(built.copied[-1])
        return
    if item.safety > options.risk and item.safety is not Safety.RESTORED:
        built.wider[item.safety] = built.wider.get(item.safety, 0) + 1
        reason = f"needs --risk {item.safety.label}: {item.reason}"
        built.left.append(Left(item.rule, item.tensor, reason, item.places))
        return
    effects = item.effects + (item.measure() if item.measure else ())
    for change in changes:
        if isinstance(change, Edit):
            built.desk.overlay.put(change.ref, change.at, change.new, item.rule, item.reason, item.safety)
        elif isinstance(change, Rescale):
            built.desk.overlay.rescale(*change, item.rule, item.reason, item.safety)
        elif isinstance(change, TextEdit):
            built.desk.rewrite(change, item)
        else:
            built.desk.tensors[change.name] = change
    kept = (item.rule, item.tensor, item.safety, item.reason, item.places, item.change, item.layers)
    built.repairs.append(Repair(*kept, effects, item.group))


def plan(built: Built) -> Plan:
    """The plan as the transactional core carries it out; long ranges stay in files until they are needed.

    Holds scratch space and open files: close ``built.desk.overlay`` when done.
    """
    checkpoint = built.desk.ctx.checkpoint
    shared: dict[str, Shared] = {}
    patches = []
    for ref, segment, old in built.desk.overlay.changes():
        offset = ref.start + segment.at
        before: Content = old
        if len(old) > HELD:
            reader = shared.setdefault(ref.shard, Shared(checkpoint.shards[ref.shard].path))
            before = Stored(reader, offset, len(old), hashlib.sha256(old).hexdigest())
        new = Mapped(before, segment.new.table) if isinstance(segment.new, Mapped) else segment.new
        patches.append(Patch(ref.shard, offset, before, new, ref.name, segment.rule, segment.reason, segment.safety))
    texts = [_text(checkpoint.root, file, edit) for file, edit in sorted(built.desk.texts.items())]
    skipped = [Skipped(item.rule, item.tensor, item.reason) for item in built.left]
    return plan_for(checkpoint.root, patches, [t for t in texts if t.old != t.new], skipped)


def _text(root: Path, file: str, edit: TextEdit) -> TextPatch:
    path = root / file
    old = path.read_bytes() if path.exists() else None
    return TextPatch(file, old, edit.new, edit.rule, edit.reason, edit.safety)
