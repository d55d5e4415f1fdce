"""SCL106."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.blocks import Kind, Under
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.codes import E8M0


class NanE8m0Scale(LayerRule):
    """An E8M0 scale is the byte 255.

    ## What it checks
    Every byte of the power-of-two scales of MXFP4, MXFP8 and ue8m0 block FP8.

    ## Why it matters
    255 is NaN by the OCP Microscaling specification.  Its block's exponent is lost.

    ## What engines do
    They disagree: infinity, NaN, or a finite number.  The same file gives different answers on each.

    ## Fix
    Requantise the block from the source, *restored*.  A block whose codes are all zero takes any byte below
    255, *exact*.

    ## References
    OCP MX v1.0 section 5.4, sglang#25519, vllm#53709
    """

    code, title, severity = "SCL106", "NaN power-of-two scale", Severity.ERROR

    def applies(self, layer: QuantizedLayer) -> bool:
        """E8M0 scales only."""
        return layer.format.scale is E8M0

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        stats = ctx.byte_stats(layer.scales)
        if stats is None or not stats.nan.count:
            return
        places = ctx.places(layer.scales, stats.nan.first)
        message = f"{stats.nan.count} of {stats.size} E8M0 scales are 255 (NaN)"
        fix = Remedy(Safety.RESTORED, "requantise the blocks from the source")
        report = ctx.blocks(layer, Kind.NAN) if layer.format.is_fp4() else None
        if report and not report.hits(Kind.NAN, Under.SEVENS, Under.OTHER).count:
            fix = Remedy(Safety.EXACT, "write 127: the blocks are zero under any finite scale")
        yield self.finding(layer.scales, message, count=stats.nan.count, places=places, fix=fix, layer=layer.name)
