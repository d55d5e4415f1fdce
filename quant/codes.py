"""The number formats as data: what every code means.

References: OCP Microscaling Formats (MX) v1.0 for E2M1, E8M0 and the 8-bit floats; the ``fn`` in E4M3FN
says finite: no infinity, one NaN per sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FloatCode:
    """A small floating-point format.

    ``ebits``/``mbits``: width of exponent and mantissa; ``bias``: exponent bias; ``nan`` and ``inf``: the
    codes that mean NaN and infinity; ``signed``: whether the top bit is a sign.  E8M0 has no mantissa, no
    sign, no zero and no subnormals: code b is 2^(b - 127).
    """

    name: str
    ebits: int
    mbits: int
    bias: int
    nan: frozenset[int] = frozenset()
    inf: frozenset[int] = frozenset()
    signed: bool = True

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return self.ebits + self.mbits + int(self.signed)

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The value of every code, float32 [2**bits]; this table is the definition of the format."""
        table = np.array([self._value(code) for code in range(1 << self.bits)], np.float32)
        table.setflags(write=False)
        return table

    def _value(self, code: int) -> float:
        if code in self.nan:
            return float("nan")
        magnitude = code & ((1 << (self.ebits + self.mbits)) - 1)
        exponent, mantissa = magnitude >> self.mbits, magnitude & ((1 << self.mbits) - 1)
        sign = -1.0 if self.signed and code >> (self.bits - 1) else 1.0
        if code in self.inf:
            return sign * float("inf")
        if self.mbits == 0:
            return float(2.0 ** (exponent - self.bias))
        if exponent == 0:
            return sign * mantissa * 2.0 ** (1 - self.bias - self.mbits)
        return sign * (1.0 + mantissa / (1 << self.mbits)) * 2.0 ** (exponent - self.bias)

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        return float(np.max(self.values[np.isfinite(self.values)]))

    @cached_property
    def smallest(self) -> float:
        """The smallest positive value (a subnormal where the format has them)."""
        return float(np.min(self.values[self.values > 0]))


E2M1 = FloatCode("e2m1", ebits=2, mbits=1, bias=1)
E4M3 = FloatCode("e4m3fn", ebits=4, mbits=3, bias=7, nan=frozenset({0x7F, 0xFF}))
E5M2 = FloatCode(
    "e5m2",
    ebits=5,
    mbits=2,
    bias=15,
    nan=frozenset({0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF}),
    inf=frozenset({0x7C, 0xFC}),
)
E8M0 = FloatCode("e8m0", ebits=8, mbits=0, bias=127, nan=frozenset({255}), signed=False)
