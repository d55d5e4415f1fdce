"""FMT105."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.shapes import expected_scales, is_half_by_fault, is_swizzled, is_transposed


class ScaleShape(LayerRule):
    """The shape of the scales does not fit the shape of the codes.

    ## What it checks
    One scale per block: [N, K/16] for NVFP4, [N, K/32] for the MX formats, ceil(N/128) x ceil(K/128) for block
    FP8 (or another block, where it is declared or a power of two), and the same with leading expert axes or
    transposed for fused 3-D experts.  Exactly half of NVFP4's scales is a known fault of one exporter.

    ## Why it matters
    Scales are read at the wrong stride: every weight after the first row is scaled by its neighbour's scale.

    ## What engines do
    Linear layers refuse with a size mismatch; fused MoE weights may be copied as they are.

    ## Fix
    None is proposed: a repair would have to guess which of the two shapes is wrong.  Make the export anew from
    the unquantised checkpoint.

    ## References
    Model-Optimizer#2038
    """

    code, title, severity, needs = "FMT105", "scales do not fit the codes", Severity.ERROR, Depth.HEADERS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        if layer.format.unaudited or is_swizzled(layer) or is_transposed(layer):
            return
        codes, scales = layer.codes.shape, layer.scales.shape
        if is_half_by_fault(layer, ctx.declared):
            message = f"scales {list(scales)} for codes {list(codes)}: half of what blocks of 16 need"
            yield self.finding(layer.scales, message, layer=layer.name)
            return
        wanted = expected_scales(layer, ctx.declared)
        if wanted is not None and scales not in wanted:
            message = f"scales {list(scales)} for codes {list(codes)}: {list(wanted[0])} would fit"
            yield self.finding(layer.scales, message, layer=layer.name)
