"""Quantised: the tensors of one quantised weight, as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.cast import unpack_nibbles
from quant.scheme import Scheme


@dataclass(frozen=True, eq=False)
class Quantised:
    """A weight [..., K] in codes.

    ``stored``: uint8, two codes per byte along the last axis ([..., K / 2]) where the scheme packs, else [..., K];
    ``scales``: scale codes (uint8), or float32 where the scheme's scales are plain floats;
    ``global_scale``: float32 [] or [E], None where the scheme has none.
    """

    scheme: Scheme
    stored: NDArray[np.uint8]
    scales: NDArray[np.uint8] | NDArray[np.float32]
    global_scale: NDArray[np.float32] | None = None

    @property
    def codes(self) -> NDArray[np.uint8]:
        """One code per element, uint8 [..., K]."""
        return unpack_nibbles(self.stored) if self.scheme.packed else self.stored

    def steps(self) -> NDArray[np.float32]:
        """What one code step of each block is worth, float32, shape of ``scales``."""
        wide = self.global_scale
        if wide is not None and wide.ndim:
            wide = wide.reshape(-1, *(1,) * (self.scales.ndim - 1))
        return self.scheme.block_scales(self.scales, wide)

    def weights(self) -> NDArray[np.float32]:
        """The dequantised weights, float32 [..., K]."""
        wide = self.global_scale
        if wide is not None and wide.ndim:
            wide = wide.reshape(-1, *(1,) * (self.scales.ndim - 1))
        return self.scheme.dequantise(self.codes, self.scales, wide)
