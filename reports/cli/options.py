"""The options that commands share: flag, environment variable, help.

All default to None, "not said", so that a settings file can answer before the built-in default does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reports.cli.choices import ColorName, DepthName, FailOn, FormatName, SeverityName

Checkpoints = Annotated[
    list[str],
    typer.Argument(metavar="CHECKPOINT...", help="Folder, shard or index file; - reads a list from stdin."),
]
DepthOption = Annotated[
    DepthName | None,
    typer.Option(envvar="AUDIT_DEPTH", help="How much to read.  [default: scales]", show_default=False),
]
SelectOption = Annotated[
    list[str] | None,
    typer.Option(envvar="AUDIT_SELECT", metavar="CODES", help="Run only rules whose codes start so (A,B,...)."),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(envvar="AUDIT_IGNORE", metavar="CODES", help="Leave out rules; the longest prefix wins."),
]
MinSeverityOption = Annotated[
    SeverityName | None,
    typer.Option(envvar="AUDIT_MIN_SEVERITY", help="Show no less; the exit code still counts all."),
]
FailOnOption = Annotated[
    FailOn | None,
    typer.Option(envvar="AUDIT_FAIL_ON", help="Exit code 1 from this severity on.  [default: error]"),
]
StrictOption = Annotated[
    bool | None,
    typer.Option("--strict/--no-strict", envvar="AUDIT_STRICT", help="Exit code 3 when a tensor is unchecked."),
]
FormatOption = Annotated[
    FormatName | None,
    typer.Option("--format", "-f", envvar="AUDIT_FORMAT", help="Form of the report.  [default: table]"),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", envvar="AUDIT_OUTPUT", metavar="FILE", help="Write the report to a file."),
]
QuietOption = Annotated[
    bool | None,
    typer.Option("--quiet/--no-quiet", "-q", envvar="AUDIT_QUIET", help="Print names only (--format plain)."),
]
NoProgressOption = Annotated[
    bool | None,
    typer.Option("--no-progress/--progress", envvar="AUDIT_NO_PROGRESS", help="No progress line on stderr."),
]
ColorOption = Annotated[
    ColorName | None,
    typer.Option(envvar="AUDIT_COLOR", help="Colours; auto honours NO_COLOR.  [default: auto]"),
]
JobsOption = Annotated[
    int | None,
    typer.Option(min=1, envvar="AUDIT_JOBS", metavar="N", help="Threads that read."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(envvar="AUDIT_CONFIG", metavar="FILE", help="Settings, instead of audit.toml or pyproject.toml."),
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(envvar="AUDIT_BASELINE", metavar="FILE", help="Hide the findings this file knows."),
]
WriteBaselineOption = Annotated[
    Path | None,
    typer.Option(envvar="AUDIT_WRITE_BASELINE", metavar="FILE", help="Accept all findings: write them there."),
]
