"""`audit repair`: plan a repair, and with --write carry it out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from auditor.finding import Finding, Severity
from auditor.interrupted import half_done
from quant.errors import RepairError, UsageError
from reports.belonging import expect_free
from reports.cli import choices, repairoptions, repairplan
from reports.cli.guard import ending, say
from reports.cli.options import ColorOption, ConfigOption, DepthOption, JobsOption, NoProgressOption, OutputOption
from reports.cli.printing import Paper
from reports.quantity import plural
from reports.report import EVERYTHING, Exit, Terms
from reports.settings import Settings

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
    paper: Paper
    jobs: int | None
    progress: Progress | None
    proof: Proof
    source: Path | None = None
    method: str = "auto"
    apply: Path | None = None
    link: bool = False
    terms: Terms = EVERYTHING

    def run(self) -> int:
        """Scan, plan, print; and write where that was asked for."""
        if self.write and self.out is None:
            repairplan.settle(repairplan.folder_of(self.checkpoint))  # before anything is read: it changes bytes
        ctx, audit = self._scan(self.checkpoint)
        if ctx.checkpoint.interrupted:
            raise RepairError(half_done(ctx.checkpoint.root, ctx.checkpoint.interrupted))
        source = self._opened(ctx)
        try:
            built, plan = self._planned(ctx, audit, source)
            if self._print_plan(built, plan):
                outcome = self._carry_out(ctx, audit, built, plan)
                self._print_outcome(built, plan, outcome)
                code = Exit.FINDINGS if outcome.errors else Exit.CLEAN
            else:
                code = self._verdict(built, plan, audit)
            self.paper.hand_in()
            return code
        finally:
            ctx.close()
            if source is not None:
                source.close()

    def _planned(self, ctx: Context, audit: Audit, source: SourceFixes | None) -> tuple[Built, Plan]:
        from repair import build

        if self.apply is not None:
            return repairplan.taken(self.apply, ctx, audit.findings, self.options)
        built = build.build(ctx, audit.findings, self.options, source)
        plan = build.plan(built)
        if self.plan_file is not None:
            self._save(built, plan, self.plan_file, source)
        return built, plan

    def _save(self, built: Built, plan: Plan, file: Path, source: SourceFixes | None) -> None:
        """Save what can be carried out in place, and say what that leaves out."""
        from repair import build
        from repair.planfile import save
        from repair.ties import ties

        if built.desk.tensors:  # a plan is of bytes in their places: an index of tensors to be added has none in it
            options = self.options._replace(rewrite=False)
            built = build.build(built.desk.ctx, built.desk.findings, options, source)
            plan = build.plan(built)
        save(plan, file, ties=ties(built, plan))
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

        limit = repairtext.SHOWN if self.paper.terminal else None
        self.paper.lines(repairtext.planned(built, plan, self.paper.width, limit, self.terms))
        if (plan.touched or built.desk.tensors or self.out) and not self.write:
            self.paper.lines(repairtext.unwritten(self.paper.width, copy=self.out is not None))
        return acts

    def _verdict(self, built: Built, plan: Plan, audit: Audit) -> Exit:
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
            proof = repairplan.copy(root, built, plan, self.out, link=self.link)
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
            checkpoint=self.checkpoint,
        )

    def _print_outcome(self, built: Built, plan: Plan, outcome: Done) -> None:
        if self.json:
            self._emit_json(built, plan, outcome)
            return
        from repair.layerchange import by_layer
        from reports import repairtext

        limit = repairtext.SHOWN if self.paper.terminal else None
        self.paper.lines([()])
        self.paper.lines(repairtext.layers(by_layer(built, plan), self.paper.width, limit))
        self.paper.lines(repairtext.done(plan, outcome, self.paper.width))

    def _emit_json(self, built: Built, plan: Plan, outcome: Done | None) -> None:
        from reports import repairjson

        self.paper.text(repairjson.render(self.checkpoint, built, plan, outcome, self.terms))


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
    link: repairoptions.Link = False,
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
    output: OutputOption = None,
) -> None:
    """Mend a checkpoint.  Shows what would change; writes only with --write, journalled, with a way back.

    Exit code 0: done, or nothing to do; 1: something to do, or errors remain; 2: wrong usage; 3: refused or failed.
    """

    def run() -> int:
        read: list[str | Path] = [checkpoint, *([source] if source is not None else [])]
        file = choices.file(config, *read)
        if apply is not None:
            repairplan.expect_alone(apply, out, plan, source)
        if link and out is None:
            raise UsageError("--link is about a copy: it needs --out DIR")
        for target, option in ((output, "-o"), (plan, "--plan")):
            if target is not None:
                expect_free(target, option, read, out)
        picked = Settings(
            select=repairoptions.words(select) or file.select, ignore=repairoptions.words(ignore) or file.ignore
        )
        rules = repairoptions.rules(picked.select, picked.ignore)
        return Job(
            checkpoint=checkpoint,
            depth=depth or file.depth or "scales",
            rules=rules,
            options=repairoptions.limits(risk, policy, repairoptions.words(include), rewrite=out is not None),
            write=write,
            out=out,
            plan_file=plan,
            json=format_ == repairoptions.FormatName.JSON,
            paper=Paper(output, choices.colored(color or file.color)),
            jobs=jobs or file.jobs,
            proof=_proof(verify),
            progress=_watch(not (no_progress or file.no_progress)),
            source=source,
            method=method,
            apply=apply,
            link=link,
            terms=choices.terms(picked, file, rules),
        ).run()

    raise ending(run, checkpoint, source)


def _proof(word: str) -> Proof:
    from repair.apply import Proof

    return Proof(word)


def _watch(wanted: bool) -> Progress | None:
    from reports.cli.progress import watch

    return watch(wanted)
