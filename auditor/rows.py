"""What a report says of each tensor and each layer, made when a report asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

from auditor.audit import LayerRow, TensorRow
from auditor.context import Context
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer

T = TypeVar("T")


class Rows(Sequence[T]):
    """A sequence that is built on first use: most reports never look at all tensors."""

    def __init__(self, build: Callable[[], list[T]]) -> None:
        """``build`` is called once, when an element or the length is first asked for."""
        self._build: Callable[[], list[T]] | None = build
        self._rows: list[T] = []

    def _built(self) -> list[T]:
        if self._build is not None:
            self._rows, self._build = self._build(), None
        return self._rows

    def __reduce__(self) -> tuple[type[list[T]], tuple[list[T]]]:
        """Travels between processes as a plain list."""
        return list, (self._built(),)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._built())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """One row, or several."""
        return self._built()[index]


def tensor_rows(ctx: Context) -> list[TensorRow]:
    """One row per tensor, in the order of the shards and their headers."""
    rows = []
    for ref in ctx.checkpoint.tensors.values():
        layer, role = ctx.recognised.roles.get(ref.name, (None, None))
        rows.append(
            TensorRow(
                name=ref.name,
                shard=ref.shard,
                dtype=ref.dtype,
                shape=ref.shape,
                offset=ref.start,
                nbytes=ref.nbytes,
                layer=layer.name if layer else "",
                format=layer.format.name_for(ctx.declared.method) if layer else "",
                role=role.value if role else "",
                read=ref.name in ctx.measured.stats,
            )
        )
    return rows


def layer_rows(ctx: Context) -> list[LayerRow]:
    """One row per quantised layer, in file order."""
    try:
        return [_layer_row(layer, ctx) for layer in ctx.layers]
    finally:
        ctx.close()  # a scale of a rare dtype is read when it is asked for


def _layer_row(layer: QuantizedLayer, ctx: Context) -> LayerRow:
    rows, columns = layer.dims()
    stats = ctx.byte_stats(layer.scales)
    floats = ctx.float_stats(layer.scales)
    low = high = None
    if stats is not None and stats.high >= 0 and (code := layer.format.scale) is not None:  # else only its bytes
        low, high = float(code.values[stats.low]), float(code.values[stats.high])
    elif floats is not None and floats.high > 0:
        low, high = floats.low, floats.high
    known = stats or floats
    return LayerRow(
        layer=layer.name,
        format=layer.format.name_for(ctx.declared.method),
        shard=layer.codes.shard,
        codes=layer.codes.name,
        rows=rows,
        columns=columns,
        global_scale=ctx.scalar(layer.get(Role.GLOBAL)),
        input_scale=ctx.scalar(layer.get(Role.INPUT)),
        blocks=known.size if known else None,
        scale_min=low,
        scale_max=high,
        zeros=known.zeros.count if known else None,
        nan=known.nan.count if known else None,
        saturated=stats.saturated if stats else None,
        subnormal=stats.subnormal if stats else None,
        octaves=math.log2(high / low) if low and high else None,
    )
