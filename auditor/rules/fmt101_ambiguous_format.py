"""FMT101."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.rule import CheckpointRule


class AmbiguousFormat(CheckpointRule):
    """Two layouts claim one tensor.

    ## What it checks
    Tensor names, dtypes and shapes of every layer against every known layout.

    ## Why it matters
    The names of two exporters are mixed in one module, so a server picks whichever it looks for first.
    The tensor is not checked further: there is no telling what its bytes mean.

    ## What engines do
    They load the names they know and ignore, or refuse, the rest.

    ## Fix
    None: remove the tensors that do not belong there.

    ## References
    The layouts in docs/formats.md
    """

    code, title, severity = "FMT101", "two formats claim one tensor", Severity.ERROR
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per tensor."""
        for ref, names in ctx.recognised.ambiguous:
            yield self.finding(ref, f"claimed by {' and '.join(names)}")
