"""CFG108."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Declared, Pattern, mended
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.jsonfile import Json, table
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
    Cut the marker, or drop the control characters; an entry of which nothing is left goes, and so does one whose name
    `quantized_layers` holds already with the same value.  With another value both stay: one of them is wrong.
    *Exact*: only the configuration changes.  A file that a conversion left behind is not touched.

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
            count = fixable(declared) if declared in ctx.declared.together else 0
            bad = [pattern for pattern in names(declared) if garbled(pattern.text)]
            if bad:
                first = bad[0]
                yield self.file_finding(
                    declared.file,
                    f"{len(bad)} of {len(names(declared))} module names hold control characters or outer blanks: "
                    f"{ascii(first.text)[:200]} in {first.key} should be {ascii(first.mended)[:200]}",
                    count=len(bad),
                    fix=Remedy(Safety.EXACT, f"write {count} name{'s' * (count > 1)} without them") if count else None,
                )


def names(declared: Declared) -> list[Pattern]:
    """Every module name of one file: exclusions, and the keys of MIXED_PRECISION's table."""
    keys = table(declared.source.get("quantized_layers")) if declared.mixed else ()
    return [*declared.exclude, *(Pattern(name, declared.file, "quantized_layers") for name in keys)]


def fixable(declared: Declared) -> int:
    """How many garbled names can be written without what garbles them."""
    listed = [p for p in declared.exclude if garbled(p.text) and isinstance(declared.source.get(p.key), list)]
    keys = table(declared.source.get("quantized_layers")) if declared.mixed else {}
    return len(listed) + len(renamed(keys))


def renamed(entries: Json) -> dict[str, str]:
    """What the garbled keys of an object become, "" where the entry goes; those that cannot be mended are left out."""
    held = {key: value for key, value in entries.items() if not garbled(key)}
    found: dict[str, str] = {}
    for key, value in entries.items():
        if not garbled(key):
            continue
        name = mended(key)
        if not name or (name in held and held[name] == value):
            found[key] = ""
        elif name not in held:
            found[key], held[name] = name, value
    return found


def garbled(name: str) -> bool:
    """Whether a name holds characters that no module's name has."""
    return not name.isprintable() or name != name.strip()
