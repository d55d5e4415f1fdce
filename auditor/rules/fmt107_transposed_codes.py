"""FMT107."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.shapes import is_transposed


class TransposedCodes(LayerRule):
    """Packed codes are stored [K/2, N] beside scales of [N, K/16].

    ## What it checks
    2-D FP4 layers whose codes fit their scales only when transposed.

    ## Why it matters
    Nibbles pair along the input axis; a transposed tensor cannot be loaded as it is.

    ## What engines do
    They refuse the shape, or, where N = K/2, load it and answer garbage.

    ## Fix
    Transpose the packed bytes, which needs a rewritten shard: *exact*.

    ## References
    vllm#50610
    """

    code, title, severity, needs = "FMT107", "transposed codes", Severity.ERROR, Depth.HEADERS

    def applies(self, layer: QuantizedLayer) -> bool:
        """Packed FP4 only."""
        return layer.format.is_fp4()

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per codes tensor."""
        if is_transposed(layer):
            message = f"codes {list(layer.codes.shape)} fit scales {list(layer.scales.shape)} only when transposed"
            fix = Remedy(Safety.EXACT, "transpose the packed bytes; the shard is rewritten")
            yield self.finding(layer.codes, message, fix=fix, layer=layer.name)
