"""CFG108."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Declared, Pattern
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.rule import CheckpointRule


class GarbledPattern(CheckpointRule):
    """A module name in the configuration holds control characters.

    ## What it checks
    The ignore and exclude lists and the names in `quantized_layers`, in both configuration files: characters that
    cannot be printed, and blanks at either end.

    ## Why it matters
    Such an entry matches no module.  modelopt 0.46 and 0.47 append a marker that begins with a NUL to every name
    while they translate names back to the published ones; for architectures whose renaming matches the marker
    itself (Nemotron-H) it stays: `lm_head` becomes `lm_head.\\0backbone.pt_name_sentinel`.

    ## What engines do
    They find no module to exclude, build quantised layers for weights that are stored in BF16, and stop, or
    serve scales that were never loaded.

    ## Fix
    Cut the marker, or drop the control characters.  *Exact*: only the configuration changes.

    ## References
    Model-Optimizer#2129
    """

    code, title, severity = "CFG108", "control characters in a module name", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per configuration file."""
        for declared in (ctx.declared, ctx.declared.other):
            if declared is None:
                continue
            bad = [pattern for pattern in names(declared) if garbled(pattern.text)]
            if bad:
                first = bad[0]
                yield self.file_finding(
                    declared.file,
                    f"{len(bad)} of {len(names(declared))} module names hold control characters or outer blanks: "
                    f"{ascii(first.text)[:200]} in {first.key} should be {ascii(first.mended)[:200]}",
                    count=len(bad),
                    fix=Remedy(Safety.EXACT, f"write the {len(bad)} names without them"),
                )


def names(declared: Declared) -> list[Pattern]:
    """Every module name of one file: exclusions, and the keys of MIXED_PRECISION's table."""
    return [*declared.exclude, *(Pattern(name, declared.file, "quantized_layers") for name in declared.layers)]


def garbled(name: str) -> bool:
    """Whether a name holds characters that no module's name has."""
    return not name.isprintable() or name != name.strip()
