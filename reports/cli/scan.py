"""`audit scan`: find defects."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from quant.errors import CheckpointError, UsageError
from reports.belonging import expect_free
from reports.cli import choices
from reports.cli.guard import ending, say, silence
from reports.cli.options import (
    BaselineOption,
    Checkpoints,
    ColorOption,
    ConfigOption,
    DepthOption,
    FailOnOption,
    FormatOption,
    IgnoreOption,
    JobsOption,
    MinSeverityOption,
    NoProgressOption,
    OutputOption,
    QuietOption,
    SelectOption,
    StrictOption,
    WriteBaselineOption,
)
from reports.quantity import plural
from reports.report import Choice, Exit, Report, unreadable, worst
from reports.settings import Settings

if TYPE_CHECKING:
    from auditor.rule import Rule
    from reports.cli.printing import Printer
    from reports.cli.progress import Progress


@dataclass(frozen=True)
class Job:
    """A scan as asked for: flags, environment, settings file and defaults put together."""

    checkpoints: tuple[str, ...]
    depth: str
    rules: tuple[Rule, ...] | None
    choice: Choice
    strict: bool
    printer: Printer
    progress: Progress | None
    jobs: int | None
    write_baseline: Path | None

    def run(self) -> int:
        """Scan, print, and say how it ended."""
        reports = [self._scan(path) for path in self.checkpoints]
        codes = [r.exit_code(strict=self.strict) for r in reports]
        if self.write_baseline is not None:
            codes = self._accept(reports, self.write_baseline)
        try:
            self.printer.print(reports)
        except BrokenPipeError:
            silence()
        if self.choice.terms.output:
            say(f"the report is in {self.choice.terms.output}, as {self.choice.terms.by[0]} says")
        return worst(codes)

    def _scan(self, path: str) -> Report:
        from auditor import scan as scan_checkpoint

        depth = choices.depth(self.depth)
        if self.progress:
            self.progress.begin()
        try:
            audit = scan_checkpoint(path, depth=depth, rules=self.rules, jobs=self.jobs, progress=self.progress)
        except CheckpointError as error:
            from reports.cli.hints import hint

            say((str(error) if path in str(error) else f"{path}: {error}") + hint(path))
            return unreadable(path, str(error), depth, self.choice.fail_on)._replace(terms=self.choice.terms)
        finally:
            if self.progress:
                self.progress.clear()
        return self.choice.report(audit)

    def _accept(self, reports: Sequence[Report], path: Path) -> list[Exit]:
        """Write the baseline; what it knows no longer fails, what could not be checked still does."""
        from reports import baseline, output

        found = [f for r in reports for f in r.audit.findings if not self.choice.ignored(f)]
        output.to_file(baseline.render(found), path)
        say(f"{plural(len(found), 'finding')} written to {path}")
        codes = (r.exit_code(strict=self.strict) for r in reports)
        return [Exit.CLEAN if code is Exit.FINDINGS else code for code in codes]


def scan(
    checkpoints: Checkpoints,
    depth: DepthOption = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    min_severity: MinSeverityOption = None,
    fail_on: FailOnOption = None,
    strict: StrictOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
    quiet: QuietOption = None,
    no_progress: NoProgressOption = None,
    color: ColorOption = None,
    jobs: JobsOption = None,
    config: ConfigOption = None,
    baseline: BaselineOption = None,
    write_baseline: WriteBaselineOption = None,
) -> None:
    """Find the defects of quantised checkpoints.  Never opens a file of theirs for writing.

    Exit code 0: clean; 1: findings at or above --fail-on; 2: wrong usage; 3: something could not be read or
    checked.
    """

    def run() -> int:
        listed = _listed(checkpoints)
        file = choices.file(config, *listed)
        picked = Settings(
            depth=depth or file.depth or "scales",
            min_severity=min_severity or file.min_severity or "info",
            fail_on=fail_on or file.fail_on or "error",
            format=format_ or file.format or "table",
            color=color or file.color or "auto",
            strict=_first(strict, file.strict),
            quiet=_first(quiet, file.quiet if format_ is None else None),
            no_progress=_first(no_progress, file.no_progress),
            output=output or file.output,
            baseline=baseline or file.baseline,
            jobs=jobs or file.jobs,
            select=_codes(select) or file.select,
            ignore=_codes(ignore) or file.ignore,
            exceptions=file.exceptions,
        )
        for target, option in ((picked.output, "-o"), (write_baseline, "--write-baseline")):
            if target is not None:
                expect_free(target, option, listed)
        return _job(listed, picked, file, write_baseline).run()

    raise ending(run)


def _first(*answers: bool | None) -> bool:
    return next((a for a in answers if a is not None), False)


def _codes(words: list[str] | None) -> tuple[str, ...]:
    """The codes of repeated options, each of which may hold several between commas."""
    return tuple(code for word in words or () for code in word.split(",") if code.strip())


def _listed(checkpoints: Sequence[str]) -> tuple[str, ...]:
    """The checkpoints, a dash replaced by the lines of stdin."""

    def each() -> Iterator[str]:
        for name in checkpoints:
            if name != "-":
                yield name
            elif sys.stdin is not None:  # None: the caller closed it
                # Names of files are bytes: one that is not UTF-8 is read as the file system gives it.
                yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())

    listed = tuple(each())
    if not listed:
        raise UsageError("stdin names no checkpoint")
    if "" in listed:
        raise UsageError("the name of a checkpoint is empty")
    return listed


def _job(checkpoints: tuple[str, ...], picked: Settings, file: Settings, write_baseline: Path | None) -> Job:
    from reports.cli.printing import Printer, expect_text
    from reports.cli.progress import watch

    form = "plain" if picked.quiet else picked.format or "table"
    expect_text(form, picked.output)
    rules = _rules(picked)
    choice = Choice(
        least=Severity[(picked.min_severity or "info").upper()],
        fail_on=choices.threshold(picked.fail_on or "error"),
        ignored=picked.excuses,
        known=_known(picked.baseline),
        terms=choices.terms(picked, file, rules),
    )
    color = choices.colored(picked.color)
    return Job(
        checkpoints=checkpoints,
        depth=picked.depth or "scales",
        rules=rules,
        choice=choice,
        strict=bool(picked.strict),
        printer=Printer(form, picked.output, color),
        progress=watch(not picked.no_progress),
        jobs=picked.jobs,
        write_baseline=write_baseline,
    )


def _rules(picked: Settings) -> tuple[Rule, ...] | None:
    """The rules that are on, None for all of them."""
    excused = [e.code for e in picked.exceptions]
    if not picked.select and not picked.ignore and not excused:
        return None
    from auditor.rule import all_rules
    from auditor.select import check, select

    check(excused, all_rules())
    return select(all_rules(), picked.select, picked.ignore)


def _known(path: Path | None) -> Callable[[Finding], bool]:
    if path is None:
        return lambda finding: False
    from reports import baseline

    return baseline.read(path).__contains__
