"""An address in a checkpoint: which shard, which bytes, what they are said to be."""

from __future__ import annotations

import math
from typing import NamedTuple

# Width in bits of every dtype a safetensors header may name.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

FLOAT_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})
FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})


class TensorRef(NamedTuple):
    """The address of one tensor; holds no data.

    ``shard``: file name inside the checkpoint's folder; ``start``: absolute byte offset in that file;
    ``shape`` as stored, outermost axis first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    nbytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per element; 1 for packed sub-byte dtypes."""
        return max(1, DTYPE_BITS[self.dtype] // 8)

    @property
    def is_scalar(self) -> bool:
        """One element, whatever the rank: [] and [1] are the same number to a rule."""
        return self.size == 1

    def unravel(self, flat: int) -> tuple[int, ...]:
        """The index of the ``flat``-th element, counted in C order."""
        index = []
        for length in reversed(self.shape):
            flat, place = divmod(flat, length)
            index.append(place)
        return tuple(reversed(index))
