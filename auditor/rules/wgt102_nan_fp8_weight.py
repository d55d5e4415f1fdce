"""WGT102."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.codes import E4M3

_STEP = 1 << 20


class NanFp8Weight(LayerRule):
    """An FP8 weight under an unusable scale holds NaN bytes.

    ## What it checks
    FP8 layers whose scale (per tensor, channel or block) has a zero, NaN, infinite or negative entry: the
    weight is read, and its NaN bytes are counted.

    ## Why it matters
    An all-zero weight through the FP8 path has amax 0, scale 0 and codes 0 / 0: every byte is NaN, and so is
    the layer's output.

    ## What engines do
    They multiply NaN by the scale.

    ## Fix
    Bytes 0 and scale 1: *exact* when every byte is NaN and the scale is 0, for then the weight was zero.
    Otherwise requantise from the source, *restored*.

    ## References
    modelopt 0.47 and older (all-zero weights)
    """

    code, title, severity = "WGT102", "NaN in an FP8 weight", Severity.ERROR

    def applies(self, layer: QuantizedLayer) -> bool:
        """FP8 codes under float scales."""
        return layer.format.element is E4M3 and layer.codes.dtype == "F8_E4M3" and layer.format.scale is None

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per weight."""
        stats = ctx.float_stats(layer.scales)
        if stats is None or not (stats.bad or stats.zeros.count or stats.negative.count):
            return
        ref, count = layer.codes, 0
        first: list[int] = []
        for at in range(0, ref.nbytes, _STEP):
            codes = np.frombuffer(ctx.read(ref, at, min(_STEP, ref.nbytes - at)), np.uint8)
            nan = np.flatnonzero((codes & 0x7F) == 0x7F)
            first += [at + int(i) for i in nan[: 8 - len(first)]]
            count += nan.size
        if not count:
            return
        fix = Remedy(Safety.RESTORED, "requantise from the source")
        if count == ref.size and stats.zeros.count == stats.size:
            fix = Remedy(Safety.EXACT, "the weight was all zero: bytes 0, scale 1")
        message = f"{count} of {ref.size} bytes are NaN under a scale that is not usable"
        yield self.finding(ref, message, count=count, places=ctx.places(ref, first), fix=fix, layer=layer.name)
