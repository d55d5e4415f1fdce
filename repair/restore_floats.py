"""Values of unquantised tensors (norms, embeddings, a head) copied from the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auditor.tensorref import TensorRef
from quant.errors import RepairError
from quant.floats import widen
from repair.restore_pieces import Piece, Reader, read_array
from repair.source import Source
from repair.source_codes import WORDS, float_bytes, native

_STEP = 1 << 18  # elements read at a time
_LEAST = 0.99  # share of finite elements that must equal the source's: else it is another tensor, or was changed


def float_values(ref: TensorRef, places: Iterable[int], source: Source, reader: Reader) -> Iterator[Piece]:
    """Single elements of a float tensor, from the source, one piece each (neighbours may be separate).

    ``places``: flat indices.  A source of another precision is rounded to nearest.  Raises RepairError when the
    source has no such tensor, when its other elements differ from this one's (a norm that took up AWQ's scales, say),
    and when it is not finite there.
    """
    if ref.dtype not in WORDS:
        raise RepairError(f"{ref.name}: {ref.dtype} is no float dtype that is copied")
    theirs = source.tensor(ref)
    _require_same(ref, theirs, source, reader)
    for flat in sorted(set(places)):
        value = _values(theirs, flat, 1, source.files)
        if not np.isfinite(value).all():
            raise RepairError(
                f"{ref.name}: the source's {theirs.name} is not finite at {list(ref.unravel(flat))} either"
            )
        yield Piece(ref, flat * ref.itemsize, float_bytes(value, ref))


def _require_same(ref: TensorRef, theirs: TensorRef, source: Source, reader: Reader) -> None:
    same = looked = 0
    for first in range(0, ref.size, _STEP):
        count = min(_STEP, ref.size - first)
        ours = _values(ref, first, count, reader)
        told = np.frombuffer(float_bytes(_values(theirs, first, count, source.files), ref), np.uint8)
        wanted = widen(native(told, ref))
        finite = np.isfinite(ours)
        same += int(np.count_nonzero((ours == wanted) & finite))
        looked += int(np.count_nonzero(finite))
    if same < _LEAST * looked:
        raise RepairError(
            f"{ref.name}: the source's {theirs.name} has other values ({same} of {looked} finite elements are equal)"
        )


def _values(ref: TensorRef, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
    raw: NDArray[Any] = read_array(reader, ref, first * ref.itemsize, count * ref.itemsize)
    return widen(native(raw, ref))
