"""FMT108."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import LayerRule
from auditor.tensorref import FLOAT_DTYPES, TensorRef


class ScaleDtype(LayerRule):
    """A scale is stored in a dtype that loaders refuse.

    ## What it checks
    NVFP4 global and activation scales that are not F32; weight_scale_inv that is neither F32 nor BF16.
    E8M0 scales stored as U8, and llm-compressor's BF16 scales of FP8 layers, are legal.

    ## Why it matters
    Loaders copy scales into float32 parameters after comparing dtypes, or reinterpret the bytes.

    ## What engines do
    Some convert, some refuse, some read two BF16 bytes as half of a float32.

    ## Fix
    The same numbers in F32, which needs a rewritten shard: *exact*, where F64 is rounded *bounded*.  A tensor with
    F64 values that would become 0 or infinite, or that holds no floats, is left alone.

    ## References
    modular#7142, lmdeploy#4276
    """

    code, title, severity, needs = "FMT108", "scale of an unusual dtype", Severity.WARNING, Depth.HEADERS

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """One finding per scale tensor."""
        for role, ref in layer.parts.items():
            usual = layer.format.parts[role].usual
            if usual is not None and ref.dtype not in usual:
                message = f"{ref.name.rpartition('.')[2]} is {ref.dtype}, loaders expect {' or '.join(sorted(usual))}"
                yield self.finding(ref, message, fix=_remedy(ref, ctx), layer=layer.name)


def _remedy(ref: TensorRef, ctx: Context) -> Remedy | None:
    if ref.dtype not in FLOAT_DTYPES:
        return None
    safety, values = Safety.EXACT, ctx.values(ref) if ref.dtype == "F64" else ()
    if ref.dtype == "F64" and values is None:  # not read
        safety = Safety.BOUNDED
    elif values:
        narrow, lost = in_f32(np.array(values))
        if lost:
            return None
        safety = Safety.EXACT if np.array_equal(narrow, values, equal_nan=True) else Safety.BOUNDED
    return Remedy(safety, "the same numbers in F32; the shard is rewritten")


def in_f32(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
    """The values rounded to float32, and how many of them become 0 or infinite by that."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    usable = np.isfinite(values) & (values != 0)
    return narrow, int(np.count_nonzero(usable & (np.isinf(narrow) | (narrow == 0))))
