"""The header of a new safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from auditor.header import MAX_HEADER, stored_size
from auditor.tensorref import DTYPE_BITS
from quant.errors import RepairError

_ALIGN = 8  # the writer's own habit: the data section begins at a multiple of it
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


class Entry(NamedTuple):
    """One tensor of a file that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data; RepairError on a dtype or shape that the format does not have."""
        found = stored_size(self.dtype, self.shape)
        if isinstance(found, str):
            raise RepairError(f"{self.name[:200]}: {found}")
        return found


def ordered(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """In the order of the safetensors writer: widest dtype first, then by name.

    So all F32 scalars lie together, and all block scales; every tensor is aligned to its dtype.
    """
    return tuple(sorted(entries, key=lambda entry: (-_RANK[entry.dtype], entry.name)))


def header_bytes(entries: Iterable[Entry], metadata: Mapping[str, str], file: str) -> bytes:
    """Length and text of the header of tensors that lie one behind the other, in this order.

    RepairError, naming the file, when two tensors have one name, or when it would be longer than the format allows.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for entry in entries:
        if entry.name in content or entry.name == "__metadata__":
            raise RepairError(f"{file}: two tensors would be called {entry.name[:200]}")
        end = at + entry.nbytes
        content[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    try:
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RepairError(f"{file}: a name or a note holds half of a surrogate pair") from None
    text += b" " * (math.ceil(len(text) / _ALIGN) * _ALIGN - len(text))
    if len(text) > MAX_HEADER:
        raise RepairError(f"{file}: the new header would hold {len(text)} bytes; the format allows {MAX_HEADER}")
    return len(text).to_bytes(8, "little") + text
