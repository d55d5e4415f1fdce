"""Per-tensor scales: which values no exporter means to write, and how to say so."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BF16 = 1 + 2.0**-7  # a number and what is left of it in BF16, rounded or cut off, are no further apart
TINY = 2.0**-126  # below it a float32 is subnormal
# Up to the first, rounding to nearest even gives 0; from the second on it gives infinity.
_RANGE = {
    "F16": (2.0**-25, 65520.0),
    "BF16": (2.0**-134, 2.0**128 - 2.0**119),
    "F32": (2.0**-150, 2.0**128 - 2.0**103),
    "F64": (0.0, math.inf),
}


def faulty(value: float) -> bool:
    """Whether a scale cannot be used: zero, negative, NaN, infinite, or subnormal, where 1 / scale may overflow."""
    return not (TINY <= value < math.inf)


def storable(value: float, dtype: str) -> bool:
    """Whether a finite value other than 0 stays one in a float dtype."""
    low, high = _RANGE[dtype]
    return low < abs(value) < high


def factor(ratio: float) -> str:
    """A ratio in words for a message: four digits, or as many as tell it from 1."""
    short = f"{ratio:.4g}"
    return short if short != "1" else f"{ratio:.9g}"


def told_apart(named: Sequence[tuple[str, float]]) -> str:
    """Names and numbers in a line: "gate_proj 0.5, up_proj 0.25"; in as many digits as tell unlike ones apart."""
    digits = 6 if len({f"{value:.6g}" for _, value in named}) == len({value for _, value in named}) else 9
    return ", ".join(f"{name} {value:.{digits}g}" for name, value in named)


def same_number(values: Sequence[float], dtypes: int) -> bool:
    """Whether scales are the same number: exactly, or where they are stored in several dtypes, as far as BF16 goes."""
    if dtypes == 1 or any(map(faulty, values)):
        return len(set(values)) == 1
    return max(values) <= min(values) * _BF16


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
    return "subnormal" if value < TINY else "positive"


def _word(value: float) -> str:
    kind = _kind(value)
    if kind == "infinite":
        return "infinite" if value > 0 else "-infinite"
    return f"{kind} ({value:.6g})" if kind in ("negative", "subnormal") else kind
