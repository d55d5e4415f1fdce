"""FMT110."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule


class PartialBlock(LayerRule):
    """A block-FP8 weight is not a whole number of blocks.

    ## What it checks
    Weights under 128x128 scales with N or K that is not a multiple of the block.

    ## Why it matters
    It is legal: blocks at the edge are partial.

    ## What engines do
    Some loaders derive the block size from the two shapes and get it wrong without a word; vLLM refuses to
    shard such a layer over GPUs.

    ## Fix
    Nothing is broken in the file.

    ## References
    transformers 5.23, finegrained FP8
    """

    code, title, severity, needs = "FMT110", "partial blocks at the edges", Severity.INFO, Depth.HEADERS

    def applies(self, layer: QuantizedLayer) -> bool:
        """FP8 with two-dimensional blocks."""
        return layer.format.block[0] > 1 and not layer.format.packed

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per weight."""
        shape, (rows, columns) = layer.codes.shape, layer.format.block
        if len(shape) >= 2 and (shape[-2] % rows or shape[-1] % columns):
            message = f"{list(shape)} is not a multiple of {rows}x{columns} blocks"
            yield self.finding(layer.codes, message, layer=layer.name)
