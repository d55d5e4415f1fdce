"""FMT110."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.shapes import weight_block


class PartialBlock(LayerRule):
    """A block-FP8 weight is not a whole number of blocks.

    ## What it checks
    Block-FP8 weights with N or K that is not a multiple of the block: the declared one where it agrees with the
    shapes, else the one that they show (128x128 where several would do).

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
        shape, block = layer.codes.shape, weight_block(layer, ctx.declared)
        if block is not None and (shape[-2] % block[0] or shape[-1] % block[1]):
            message = f"{list(shape)} is not a multiple of {block[0]}x{block[1]} blocks"
            yield self.finding(layer.codes, message, layer=layer.name)
