"""`audit repair`: plan a repair, and with --write carry it out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from auditor.checkpoint import half_done
from auditor.finding import Finding, Safety, Severity
from quant.errors import RepairError, UsageError
from reports.cli import choices, repairoptions, repairplan
from reports.cli.guard import ending, say, silence
from reports.cli.options import ColorOption, ConfigOption, DepthOption, JobsOption, NoProgressOption
from reports.quantity import plural
from reports.report import Exit
from reports.settings import load

if TYPE_CHECKING:
    from auditor.audit import Audit
    from auditor.context import Context
    from auditor.known import Known
    from auditor.rule import Rule
    from repair.apply import Proof
    from repair.build import Built, SourceFixes
    from repair.fixes.desk import Options
    from repair.patch import Plan
    from reports.cli.progress import Progress
    from reports.layout import Line
    from reports.repairtext import Done


class Job(NamedTuple):
    """A repair as asked for."""

    checkpoint: str
    depth: str
    rules: tuple[Rule, ...] | None
    options: Options
    write: bool
    out: Path | None
    plan_file: Path | None
    json: bool
    color: bool | None
    jobs: int | None
    progress: Progress | None
    proof: Proof
    source: Path | None = None
    method: str = "auto"

    def run(self) -> int:
        """Scan, plan, print; and write where that was asked for."""
        from repair import build

        if self.write and self.out is None:
            repairplan.settle(repairplan.folder_of(self.checkpoint))  # before anything is read: it changes bytes
        ctx, audit = self._scan(self.checkpoint)
        if ctx.checkpoint.interrupted:
            raise RepairError(half_done(ctx.checkpoint.root, ctx.checkpoint.interrupted))
        source = self._opened(ctx)
        try:
            built = build.build(ctx, audit.findings, self.options, source)
            plan = build.plan(built)
            if self.plan_file is not None:
                self._save(built, plan, self.plan_file, source)
            if not self._print_plan(built, plan):
                return self._verdict(built, plan, audit)
            outcome = self._carry_out(ctx, audit, built, plan)
            self._print_outcome(built, plan, outcome)
            return Exit.FINDINGS if outcome.errors else Exit.CLEAN
        finally:
            ctx.close()
            if source is not None:
                source.close()

    def _save(self, built: Built, plan: Plan, file: Path, source: SourceFixes | None) -> None:
        """Save what can be carried out in place, and say what that leaves out."""
        from repair import build
        from repair.planfile import save

        if built.desk.tensors:  # a plan is of bytes in their places: an index of tensors to be added has none in it
            options = self.options._replace(rewrite=False)
            built = build.build(built.desk.ctx, built.desk.findings, options, source)
            plan = build.plan(built)
        save(plan, file)
        say(f"plan written to {file}")
        if built.copied:
            count = plural(len(built.copied), "finding")
            say(f'{count} not mended by it ("skipped" has the reasons): only by a copy, --out DIR --write')

    def _opened(self, ctx: Context) -> SourceFixes | None:
        if self.source is None:
            return None
        from repair.build import SourceFixes

        return SourceFixes(self.source, self.method, ctx)

    def _scan(self, path: str, known: Known | None = None) -> tuple[Context, Audit]:
        from auditor.engine import examine

        if self.progress:
            self.progress.begin()
        try:
            depth = choices.depth(self.depth)
            found = examine(path, depth=depth, rules=self.rules, jobs=self.jobs, progress=self.progress, known=known)
        finally:
            if self.progress:
                self.progress.clear()
        if found[1].errors:
            first = found[1].errors[0]
            raise RepairError(f"internal error of {first.rule} at {first.where}: {first.error}; please report it")
        return found

    def _print_plan(self, built: Built, plan: Plan) -> bool:
        """Print what is planned; whether there is something to write, and it is to be written."""
        acts = self.write and bool(plan.touched or built.desk.tensors or self.out)
        if self.json:
            if not acts:
                self._emit_json(built, plan, None)
            return acts
        from reports import repairtext

        limit = repairtext.SHOWN if sys.stdout.isatty() else None
        self._emit(repairtext.planned(built, plan, self._width(), limit))
        if (plan.touched or built.desk.tensors or self.out) and not self.write:
            self._emit(repairtext.unwritten(self._width(), copy=self.out is not None))
        return acts

    def _verdict(self, built: Built, plan: Plan, audit: Audit) -> int:
        """Of a run that wrote nothing: 1 when there is something to do, or when errors remain."""
        if plan.touched or built.desk.tensors:
            return Exit.FINDINGS
        return Exit.FINDINGS if any(f.severity is Severity.ERROR for f in audit.findings) else Exit.CLEAN

    def _carry_out(self, ctx: Context, audit: Audit, built: Built, plan: Plan) -> Done:
        from auditor.known import Known
        from reports.repairtext import Done

        start = time.monotonic()
        root = ctx.checkpoint.root
        entry = proof = ""
        if self.out is not None:
            proof = repairplan.copy(root, built, plan, self.out)
            _, after = self._scan(str(self.out))
        else:
            entry, proof = repairplan.carry_out(root, plan, self.proof)
            _, after = self._scan(self.checkpoint, Known.since(ctx, audit.findings, plan.ranges))
        before = {(f.code, f.tensor) for f in audit.findings}
        now = {(f.code, f.tensor) for f in after.findings}
        return Done(
            entry=entry,
            proof=proof,
            seconds=time.monotonic() - start,
            errors=sum(f.severity is Severity.ERROR for f in after.findings),
            gone=len(before - now),
            fresh=tuple(_said(f) for f in after.findings if (f.code, f.tensor) not in before),
            where=str(self.out) if self.out is not None else "",
        )

    def _print_outcome(self, built: Built, plan: Plan, outcome: Done) -> None:
        if self.json:
            self._emit_json(built, plan, outcome)
            return
        from repair.layerchange import by_layer
        from reports import repairtext

        limit = repairtext.SHOWN if sys.stdout.isatty() else None
        self._emit([()])
        self._emit(repairtext.layers(by_layer(built, plan), self._width(), limit))
        self._emit(repairtext.done(plan, outcome, self._width()))

    def _emit(self, lines: Iterable[Line]) -> None:
        from reports.cli.printing import print_text

        try:
            print_text(lines, self.color)
        except BrokenPipeError:
            silence()

    def _emit_json(self, built: Built, plan: Plan, outcome: Done | None) -> None:
        from reports import output, repairjson

        output.all_to_stream(repairjson.render(self.checkpoint, built, plan, outcome), sys.stdout)

    def _width(self) -> int | None:
        from reports.cli.printing import columns

        return columns() if sys.stdout.isatty() else None


def _said(finding: Finding) -> str:
    return f"{finding.code} {finding.tensor}"


def repair(
    checkpoint: repairoptions.Checkpoint,
    write: repairoptions.Write = False,
    risk: repairoptions.Risk = repairoptions.RiskName.EXACT,
    policy: repairoptions.PolicyOption = "peer-max",
    select: repairoptions.Select = None,
    ignore: repairoptions.Ignore = None,
    include: repairoptions.Include = None,
    depth: DepthOption = None,
    out: repairoptions.Out = None,
    plan: repairoptions.PlanFile = None,
    apply: repairoptions.Apply = None,
    source: repairoptions.Source = None,
    method: repairoptions.Method = repairoptions.MethodName.AUTO,
    verify: repairoptions.Verify = repairoptions.VerifyName.RANGES,
    format_: repairoptions.Format = repairoptions.FormatName.TABLE,
    color: ColorOption = None,
    no_progress: NoProgressOption = None,
    jobs: JobsOption = None,
    config: ConfigOption = None,
) -> None:
    """Mend a checkpoint.  Shows what would change; writes only with --write, journalled, with a way back.

    Exit code 0: done, or nothing to do; 1: something to do, or errors remain; 2: wrong usage; 3: refused or failed.
    """

    def run() -> int:
        file = load(config)
        colored = choices.colored(color or file.color)
        if apply is not None:
            repairplan.refuse_beside_apply(out, plan, source)
            return repairplan.apply_file(checkpoint, apply, verify, write=write, color=colored)
        return Job(
            checkpoint=checkpoint,
            depth=depth or file.depth or "scales",
            rules=_rules(repairoptions.words(select) or file.select, repairoptions.words(ignore) or file.ignore),
            options=_options(risk, policy, repairoptions.words(include), rewrite=out is not None),
            write=write,
            out=out,
            plan_file=plan,
            json=format_ == repairoptions.FormatName.JSON,
            color=colored,
            jobs=jobs or file.jobs,
            proof=_proof(verify),
            progress=_watch(not (no_progress or file.no_progress)),
            source=source,
            method=method,
        ).run()

    raise ending(run)


def _proof(word: str) -> Proof:
    from repair.apply import Proof

    return Proof(word)


def _watch(wanted: bool) -> Progress | None:
    from reports.cli.progress import watch

    return watch(wanted)


def _rules(selected: tuple[str, ...], ignored: tuple[str, ...]) -> tuple[Rule, ...] | None:
    if not selected and not ignored:
        return None
    from auditor.rule import all_rules
    from auditor.select import select

    return select(all_rules(), selected, ignored)


def _options(risk: str, policy: str, include: tuple[str, ...], *, rewrite: bool) -> Options:
    from quant.activation import Policy
    from repair.fixes.catalogue import ENTRIES
    from repair.fixes.desk import Options

    unknown = [code for code in include if code not in ENTRIES]
    if unknown:
        known = ", ".join(sorted(code for code, entry in ENTRIES.items() if entry.asked))
        raise UsageError(f"--include {unknown[0]}: no repair waits to be asked for by that code; these do: {known}")
    name, _, value = policy.partition("=")
    floor: float | None = None
    if name not in {p.value for p in Policy} or bool(value) != (name == Policy.FLOOR.value):
        raise UsageError(f"--policy {policy!r}: not one of peer-max, min-positive, floor=VALUE")
    if value:
        try:
            floor = float(value)
        except ValueError:
            floor = math.nan
        if not 2.0**-126 <= floor < 2.0**127:
            raise UsageError(f"--policy {policy!r}: the floor must be a positive float32 number")
    return Options(Safety[risk.upper()], Policy(name), floor, frozenset(include), rewrite)
