"""CFG109."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from auditor.architecture import module_of, plain_linears
from auditor.audit import Depth
from auditor.context import Context
from auditor.declared import Pattern
from auditor.finding import Finding, Severity
from auditor.patterns import Dialect, unwrapped
from auditor.rule import CheckpointRule

_SHOWN = 5
_USUAL = frozenset({"lm_head", "embed_tokens", "model.embed_tokens", "re:.*lm_head", "*lm_head*", "*lm_head", ""})


class IdlePattern(CheckpointRule):
    """An entry of the ignore or exclude list matches no module.

    ## What it checks
    Every entry against all module names in the files.  Exporters write entries for parts that a model may lack (a
    tied head, a vision tower, MTP layers), so an idle entry is info.  It is a warning when it is nearly the name
    of a layer that is stored unquantised and that nothing excludes: other case, an escaped dot, a glob where
    names are matched exactly.

    ## Why it matters
    An entry that was meant to match and does not leaves its module declared quantised.

    ## What engines do
    They say nothing.

    ## Fix
    Write the entry as the module is called in the files, in the syntax of the method: globs for modelopt, exact
    names or `re:` expressions for compressed-tensors.

    ## References
    vllm#24178, vllm#28072
    """

    code, title, severity = "CFG109", "exclusion that matches nothing", Severity.INFO
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One info for all idle entries of the list, one warning for each that was meant to match."""
        declared = ctx.declared
        if not declared.exclude or not ctx.checkpoint.tensors or ctx.checkpoint.missing or ctx.checkpoint.unopened:
            return
        used = {declared.exclude[number].mended for number in declared.matcher.used(modules(ctx))}
        refused = {declared.exclude[number].mended for number in declared.matcher.refused}
        idle = {p.text: p for p in declared.exclude if p.mended not in used and p.mended not in refused}
        bare = [linear.module for linear in plain_linears(ctx) if not declared.may_be_excluded(linear.module)]
        quiet: list[Pattern] = []
        for pattern in idle.values():
            meant = intended(pattern.mended, bare, declared.dialect)
            if meant:
                yield self.file_finding(
                    pattern.file,
                    f"{pattern.text[:200]!r} in {pattern.key} matches no module, but is nearly {meant}, "
                    "which is stored unquantised",
                    severity=Severity.WARNING,
                )
            elif pattern.mended not in _USUAL:
                quiet.append(pattern)
        if quiet:
            shown = ", ".join(repr(pattern.text[:100]) for pattern in quiet[:_SHOWN])
            more = f" and {len(quiet) - _SHOWN} more" if len(quiet) > _SHOWN else ""
            message = f"{len(quiet)} exclusions match no module in the files: {shown}{more}"
            yield self.file_finding(quiet[0].file, message, count=len(quiet))


def modules(ctx: Context) -> Iterator[str]:
    """Names of all modules, those of unquantised tensors first: they are what the list is about."""
    for ref in (*ctx.recognised.plain, *ctx.recognised.unclaimed):
        yield module_of(ref)
        yield ref.name.rpartition(".")[0]
    for layer in ctx.layers:
        yield layer.name


def intended(pattern: str, names: Iterable[str], dialect: Dialect) -> str:
    """The unquantised module that an idle pattern nearly names, "" when there is none."""
    plain = plainly(pattern)
    for module in names:
        name = plainly(module)
        if plain and (plain == name or name.startswith(plain + ".")):
            return module
        glob = dialect is Dialect.COMPRESSED_TENSORS and pattern.startswith("*") and plain
        if glob and (name.endswith(plain) or f"{plain}." in name):
            return module
    return ""


def plainly(name: str) -> str:
    """A name without what a typist may add or leave out: case, escapes, wrappers, ``re:``, stars, ``.weight``."""
    name = name.removeprefix("re:").strip("^$ ").replace("\\", "").replace("/", ".").lower()
    return unwrapped(name.strip("*").strip(".").removesuffix(".weight"))
