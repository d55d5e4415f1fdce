"""FMT104."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import CODE_DTYPES, SCALE_LEAVES, split
from auditor.rule import CheckpointRule
from auditor.rules.fmt102_unexplained_tensor import unread_modules


class OrphanScale(CheckpointRule):
    """A scale has no weight to scale.

    ## What it checks
    weight_scale, input_scale and the like in a module that holds no quantised weight.  An error where the scale is a
    weight's, the module holds no weight at all, and the configuration declares it quantised.  Modules with a tensor
    whose entry cannot be read are left to FIL103.

    ## Why it matters
    Either the weight is missing, or it was saved unquantised while its scale was kept: a server that sees the
    scale may quantise, and one that sees the weight may not.

    ## What engines do
    Unknown names are ignored by some loaders and refused by others.

    ## Fix
    None is proposed: which of the two is right is not in the file.

    ## References
    The layouts in docs/formats.md
    """

    code, title, severity = "FMT104", "scale without a weight", Severity.WARNING
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per scale."""
        if not ctx.recognised.unclaimed:
            return
        coded = {split(ref.name)[0] for ref in ctx.recognised.unclaimed if _is_codes(ref.name, ref.dtype)}
        coded.update(layer.module for layer in ctx.layers)
        coded |= unread_modules(ctx)
        for ref in ctx.recognised.unclaimed:
            module, leaf = split(ref.name)
            if module not in coded and not _is_codes(ref.name, ref.dtype) and (leaf in SCALE_LEAVES or "scale" in leaf):
                lost = leaf.startswith("weight_") and f"{module}.weight" not in ctx.checkpoint.tensors
                severity = Severity.ERROR if lost and ctx.declared.quantises(module) else None
                message = f"{leaf} in a module without a {'' if lost else 'quantised '}weight"
                yield self.finding(ref, message, layer=module, severity=severity)


def _is_codes(name: str, dtype: str) -> bool:
    return dtype in CODE_DTYPES and "scale" not in split(name)[1]
