"""SCL101."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.blocks import Kind, Under
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from quant.codes import E4M3


class NanBlockScale(LayerRule):
    """A block scale is the NaN byte 0x7F or 0xFF.

    ## What it checks
    Every byte of an E4M3 block-scale tensor for `byte & 0x7F == 0x7F`, and the codes under each hit.
    Exporters pack the codes after the FP8 cast, so the codes tell what happened:

    1. **all eight bytes 0x77**: the codes were made by dividing by the NaN; the block's content is lost.
       The usual cause is a block, expert or tensor that is all zero (0 / 0).
    2. **all codes zero**: the block is zero whatever its scale; any finite byte is right.
    3. **other codes**: packed apart from the scale; the true scale was above 448.

    ## Why it matters
    One NaN scale turns its sixteen weights, and then the whole output row and every later layer, into NaN.

    ## What engines do
    vLLM's linear layers of modelopt checkpoints may refuse with a message that says the scale was "never
    loaded"; its MoE layers, its compressed-tensors path, SGLang and TensorRT-LLM do not look, and serve NaN.

    ## Fix
    Case 2 becomes 0x7E (448), *exact*.  Case 1 becomes a zero block, a *guess* (exact when the whole tensor
    shows the signature and its global scale is 0: the weight was zero).  Case 3 becomes 0x7E, a *guess*.
    Writing 0x7E over case 1 gives sixteen copies of the tensor's largest weight: no NaN, and wrong.
    With the unquantised source every case is *restored*.

    ## References
    Model-Optimizer#1397, Model-Optimizer#1633, vllm-omni#4025
    """

    code, title, severity = "SCL101", "NaN block scale", Severity.ERROR

    def applies(self, layer: QuantizedLayer) -> bool:
        """E4M3 block scales only."""
        return layer.format.scale is E4M3

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        stats = ctx.byte_stats(layer.scales)
        if stats is None or not stats.nan.count:
            return
        report = ctx.blocks(layer, Kind.NAN)
        message = f"{stats.nan.count} of {stats.size} block scales are NaN"
        fix = Remedy(Safety.GUESS, "the shapes of codes and scales do not agree: only the source can restore it")
        if report is not None:
            lost = report.hits(Kind.NAN, Under.SEVENS).count
            zero = report.hits(Kind.NAN, Under.ZEROS).count
            other = report.hits(Kind.NAN, Under.OTHER).count
            kinds = ((lost, "codes all 0x77 (content lost)"), (zero, "zero codes"), (other, "other codes"))
            message += ", " + ", ".join(f"{count} over {what}" for count, what in kinds if count)
            fix = self._fix(lost, zero, other, stats.size, ctx.scalar(layer.global_scale))
        places = ctx.places(layer.scales, stats.nan.first)
        yield self.finding(
            layer.scales, message, count=stats.nan.count, places=places, fix=fix, layer=layer.name
        )  # fmt: skip

    def _fix(self, lost: int, zero: int, other: int, size: int, global_scale: float | None) -> Remedy:
        if not lost and not other:
            return Remedy(Safety.EXACT, "write 0x7E: the blocks are zero under any finite scale")
        # An all-zero tensor: every block lost, and a global scale of amax / 2688 = 0 (its reciprocal: inf).
        if lost == size and global_scale is not None and global_scale in (0.0, float("inf")):
            return Remedy(Safety.EXACT, "the weight was all zero: zero the codes, write finite scales")
        parts = [f"zero the codes of {lost} lost"] * bool(lost) + [f"write 0x7E over {other} overflowed"] * bool(other)
        return Remedy(Safety.GUESS, f"{' and '.join(parts)}; with the source the blocks are restored")
