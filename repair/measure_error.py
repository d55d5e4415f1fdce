"""How far a layer is from its source, before a repair and after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from auditor.layer import QuantizedLayer
from quant.errors import NumericError, RepairError
from quant.metrics import ErrorSums, error
from repair.restore_pieces import Overlay, Piece, Reader
from repair.source import Source
from repair.source_codes import stored_rows


class Change(NamedTuple):
    """Errors of one layer against its source, as it is and as it will be."""

    before: ErrorSums
    after: ErrorSums


def layer_error(layer: QuantizedLayer, source: Source, reader: Reader) -> ErrorSums:
    """Error of a layer's weights, as ``reader`` gives them, against the source: one chunk in memory at a time.

    ``mse``, ``sqnr`` and ``largest`` are NaN when a weight is NaN, ``mse`` is infinite when one is.  Raises
    RepairError when the source has no such layer or the layer's shapes do not fit together.
    """
    total = ErrorSums()
    for chunk in source.chunks(layer):
        stored = stored_rows(layer, reader, chunk.expert, chunk.first, chunk.first + len(chunk.weights))
        try:
            total += error(chunk.weights, stored)
        except NumericError as problem:
            raise RepairError(f"{layer.codes.name}: cannot be compared with its source: {problem}") from None
    # The larger of NaN and a number depends on their order.
    return replace(total, largest=math.nan) if math.isnan(total.squared) else total


def change(layer: QuantizedLayer, source: Source, reader: Reader, pieces: Iterable[Piece]) -> Change:
    """`layer_error` now and once ``pieces`` (of any tensors, disjoint) are written; nothing is written."""
    return Change(layer_error(layer, source, reader), layer_error(layer, source, Overlay(reader, pieces)))
