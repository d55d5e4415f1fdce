"""GLB101."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import Geometry, QuantizedLayer
from auditor.rule import LayerRule
from auditor.scalars import describe, faulty
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.cast import is_nan
from quant.codes import E4M3
from quant.scheme import GlobalScale

Read = Callable[[TensorRef, int, int], bytes]


class BadGlobalScale(LayerRule):
    """A second-level scale is zero, NaN, infinite, negative or subnormal.

    ## What it checks
    weight_scale_2 (modelopt, Quark) and weight_global_scale (compressed-tensors), also one per expert.

    ## Why it matters
    It multiplies (or divides) every weight of the layer.  The usual cause is an all-zero weight: modelopt
    then stores weight_scale_2 = 0, block scales 0xFF or 0x7E and packed bytes 0x77, and converters turn the
    zero into an infinite divisor.

    ## What engines do
    0 * NaN and x / inf: the layer gives NaN or zeros.  In a fused set the broken value can win: the maximum of
    the set with an infinite divisor rescales its siblings to nothing.

    ## Fix
    An all-zero tensor (every block shows the signature): zero codes, finite scales, the peer's global scale
    or 1, *exact*.  Otherwise requantise from the source, *restored*.

    ## References
    Model-Optimizer 0.47 and older (all-zero weights)
    """

    code, title, severity, needs = "GLB101", "unusable global scale", Severity.ERROR, Depth.SCALARS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per global scale tensor."""
        ref = layer.global_scale
        values = ctx.values(ref)
        if ref is None or values is None or layer.format.unaudited:
            return
        bad = [i for i, value in enumerate(values) if faulty(value)]
        if not bad:
            return
        what = describe([values[i] for i in bad])
        message = (
            f"{ref.name.rpartition('.')[2]} is {what}" if len(values) == 1 else f"{len(bad)} of {len(values)}: {what}"
        )
        fix = _remedy(layer, ref, values, bad, ctx)
        yield self.finding(ref, message, count=len(bad), places=ctx.places(ref, bad), fix=fix, layer=layer.name)


def is_dead(value: float, divides: bool) -> bool:
    """Whether a global scale is what an all-zero weight leaves: 0, as a divisor infinite."""
    return value == 0 or (divides and math.isinf(value))


def zero_parts(layer: QuantizedLayer, values: Sequence[float], read: Read) -> list[int]:
    """The experts (0 where there is one scale) with a dead global scale, all blocks of which say that they were zero.

    Such a block has codes 7 throughout under NaN or 448, codes 0, or a scale of zero (of either sign): it reads as 0.
    """
    geometry = layer.geometry()
    if geometry is None or layer.format.scale is not E4M3 or not values or geometry.rows % len(values):
        return []
    rows, divides = geometry.rows // len(values), layer.format.global_scale is GlobalScale.DIVIDE
    dead = [i for i, value in enumerate(values) if is_dead(value, divides)]
    return [i for i in dead if _was_zero(layer, geometry, i * rows, rows, read)]


def _was_zero(layer: QuantizedLayer, geometry: Geometry, first: int, rows: int, read: Read) -> bool:
    unit, inner = geometry.unit, geometry.inner
    step = max(1, (1 << 16) // inner)
    for row in range(first, first + rows, step):
        count = min(step, first + rows - row)
        scales = np.frombuffer(read(layer.scales, row * inner, count * inner), np.uint8)
        codes = np.frombuffer(read(layer.codes, row * inner * unit, count * inner * unit), np.uint8)
        blocks = codes.reshape(count, unit, inner)
        seven = (blocks == 0x77).all(axis=1).reshape(-1) & (is_nan(E4M3, scales) | (scales == 0x7E))
        zero = ((blocks & 0x77) == 0).all(axis=1).reshape(-1) | ((scales & 0x7F) == 0)
        if not (seven | zero).all():
            return False
    return True


def _remedy(layer: QuantizedLayer, ref: TensorRef, values: list[float], bad: list[int], ctx: Context) -> Remedy:
    """Exact where the codes say so; what they say is looked at from depth `scales` on."""
    divides = layer.format.global_scale is GlobalScale.DIVIDE
    if ref.dtype in FLOAT_DTYPES and all(is_dead(values[i], divides) for i in bad):
        note = "zero codes, finite scales: every block shows the signature of a zero weight"
        if ctx.byte_stats(layer.scales) is None:
            return Remedy(Safety.EXACT, note.replace(": ", ", if "))
        if zero_parts(layer, values, ctx.read) == bad:
            return Remedy(Safety.EXACT, note)
    return Remedy(Safety.RESTORED, "requantise the layer from the source")
