"""Per-tensor scales: which values no exporter means to write, and how to say so."""

from __future__ import annotations

import math
from collections.abc import Sequence

TINY = 2.0**-126  # below it a float32 is subnormal
# Up to the first, rounding to nearest even gives 0; from the second on it gives infinity.
_RANGE = {
    "F16": (2.0**-25, 65520.0),
    "BF16": (2.0**-134, 2.0**128 - 2.0**119),
    "F32": (2.0**-150, 2.0**128 - 2.0**103),
    "F64": (0.0, math.inf),
}


def faulty(value: float) -> bool:
    """Whether a scale (or its reciprocal) is zero, negative, NaN or infinite."""
    return not (0.0 < value < math.inf)


def subnormal(value: float) -> bool:
    """Whether a positive scale is below the normal float32 range: 1 / value may overflow."""
    return 0.0 < value < TINY


def storable(value: float, dtype: str) -> bool:
    """Whether a finite value other than 0 stays one in a float dtype."""
    low, high = _RANGE[dtype]
    return low < abs(value) < high


def describe(values: Sequence[float]) -> str:
    """What is wrong with faulty values, in a few words: "zero", "NaN", "-3.5"."""
    if len(values) == 1:
        return _word(values[0])
    kinds: dict[str, int] = {}
    for value in values:
        kinds[_kind(value)] = kinds.get(_kind(value), 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _kind(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "zero"
    if value < 0:
        return "negative"
    return "subnormal" if subnormal(value) else "positive"


def _word(value: float) -> str:
    kind = _kind(value)
    if kind == "infinite":
        return "infinite" if value > 0 else "-infinite"
    return f"{kind} ({value:.6g})" if kind in ("negative", "subnormal") else kind
