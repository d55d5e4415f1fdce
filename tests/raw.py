"""Tensors as bytes, and shards written and read without the tool under test.

FP8 and E8M0 values are injected as bytes: no framework's cast is asked what an overflow becomes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH = {
    "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4,
    "I32": 4, "F64": 8, "I64": 8,
}  # fmt: skip
_NUMPY = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "I16": "<i2"}


class Raw(NamedTuple):
    """One tensor: dtype as a header names it, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def bytes_at(self, at: int, new: bytes) -> Raw:
        """The same tensor with other bytes at a byte offset."""
        return self._replace(data=self.data[:at] + new + self.data[at + len(new) :])

    def array(self) -> NDArray[np.uint8]:
        """The bytes, shaped like the tensor (one-byte dtypes)."""
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)

    def values(self) -> NDArray[np.float64]:
        """The values of a float tensor."""
        if self.dtype == "BF16":
            words = np.frombuffer(self.data, "<u2").astype(np.uint32) << 16
            return words.view(np.float32).astype(np.float64).reshape(self.shape)
        return np.frombuffer(self.data, _NUMPY[self.dtype]).astype(np.float64).reshape(self.shape)


def raw(dtype: str, values: object, shape: tuple[int, ...] | None = None) -> Raw:
    """A tensor from values: floats are rounded to the dtype (BF16: truncated), one-byte dtypes are taken as bytes."""
    array = np.asarray(values)
    if dtype == "BF16":
        data = (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    elif dtype in _NUMPY:
        data = array.astype(_NUMPY[dtype]).tobytes()
    else:
        data = array.astype(np.uint8).tobytes()
    return Raw(dtype, array.shape if shape is None else shape, data)


def shard_bytes(tensors: Mapping[str, Raw]) -> bytes:
    """A safetensors file in the usual order: widest dtypes first, then by name."""
    names = sorted(tensors, key=lambda n: (-WIDTH[tensors[n].dtype], n))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = tensors[name]
        end = at + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors[name].data for name in names)


class Stored(NamedTuple):
    """Where a tensor lies, by another reader than the tool's: dtype, shape, absolute offset."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def stored(path: Path) -> dict[str, Stored]:
    """The header of a sound shard."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }
