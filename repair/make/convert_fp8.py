"""FP8 matrices between layouts: the codes and the numbers stay, the shapes and names of the scales differ.

One scale is [] or [1], scales per channel [N] or [N, 1], scales per block [n, 1, k, 1] or [n, k]; DeepSeek's
weight_scale_inv multiplies in spite of its name.  Scales become F32, which holds BF16 and F16 exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

from auditor.declaration import Activation, Algorithm, Family
from auditor.formats import fp8
from auditor.formats.base import Role, Shape, ceil_div
from auditor.layer import QuantizedLayer
from auditor.tensorref import TensorRef
from quant.errors import RepairError
from repair.make.assemble import Remade
from repair.make.convert_scalars import activation, consumed, stored_input
from repair.make.convertrow import Converted, ConvertRow, Into
from repair.make.layouts import FP8, Layout, Target
from repair.make.shard import Copy, Fill, Piece
from repair.restore_pieces import read_array
from repair.shardheader import Entry
from repair.source_codes import floats, scheme

_DEEPSEEK = "deepseek-fp8"
FORMATS = frozenset({fp8.FORMAT.name, fp8.CHANNEL.name, fp8.BLOCK.name, _DEEPSEEK})


def convert(layer: QuantizedLayer, into: Into) -> Converted:
    """A matrix [N, K]; RepairError when its scales do not fit it, or the layout has no such way of quantising."""
    codes, module, home = layer.codes, layer.module, layer.codes.shard
    if len(codes.shape) != 2:
        raise RepairError(f"{home}: {codes.name}: shape {list(codes.shape)} is no matrix")
    told = _algorithm(layer, into)
    target = FP8[into.layout]
    given, dropped = stored_input(layer, told.activation is Activation.STATIC)
    refs = {Role.CODES: codes, Role.SCALES: layer.scales} | ({Role.INPUT: given} if given is not None else {})
    shapes: dict[Role, Shape] = {Role.CODES: codes.shape, Role.INPUT: target.scalar}
    shapes[Role.SCALES] = _scale_shape(layer, told, target)
    if given is not None and given.size != 1:
        raise RepairError(f"{home}: {given.name}: {given.size} numbers where one is due")
    entries = tuple(_entry(target, role, module, shapes[role]) for role in refs)
    row = ConvertRow(codes.name, layer.scales.size, layer.scales.size, dropped=dropped)

    def pieces() -> Iterator[Piece]:
        for entry, (role, ref) in zip(entries, refs.items(), strict=True):
            if role is Role.CODES or ref.dtype == "F32":
                yield Copy(entry.name, 0, into.sources, ref, 0, ref.nbytes)
            else:
                yield Fill(entry.name, 0, _widened(into, ref))
        yield row

    return Converted(Remade(home, consumed(layer), entries, (pieces,), (module,), told), lambda: iter([row]))


def _entry(target: Target, role: Role, module: str, shape: Shape) -> Entry:
    name = target.name(role, module)
    return Entry(name, "F8_E4M3" if role is Role.CODES else "F32", shape)


def _widened(into: Into, ref: TensorRef) -> bytes:
    raw = read_array(into.sources, ref, 0, ref.nbytes)
    return floats(raw.reshape(1, -1), ref).astype("<f4").tobytes()


def _algorithm(layer: QuantizedLayer, into: Into) -> Algorithm:
    """By the scales' shape; a lone scale may be that of one block that holds the whole matrix: then as declared."""
    declared = into.declared.algo_for(layer.name)
    kind = layer.format.name
    if kind in (fp8.BLOCK.name, _DEEPSEEK) or (declared is not None and declared.family is Family.FP8_BLOCK):
        block = _block(layer, declared)
        return Algorithm("FP8_BLOCK", Family.FP8_BLOCK, activation(layer, into, Activation.DYNAMIC), None, block)
    if kind == fp8.CHANNEL.name:
        return Algorithm("FP8_CHANNEL", Family.FP8_CHANNEL, activation(layer, into, Activation.DYNAMIC))
    return Algorithm("FP8", Family.FP8, activation(layer, into))


def _block(layer: QuantizedLayer, declared: Algorithm | None) -> tuple[int, int]:
    if declared is not None and declared.block:
        return declared.block
    rows, columns = scheme(layer).block
    return rows, columns


def _scale_shape(layer: QuantizedLayer, told: Algorithm, target: Target) -> Shape:
    rows, columns = layer.codes.shape
    shape = target.scalar
    modelopt = target.layout is Layout.MODELOPT
    if told.family is Family.FP8_CHANNEL:
        shape = (rows,) if modelopt else (rows, 1)
    elif told.block:
        if modelopt and told.block != (128, 128):
            raise _misfit(layer, f"blocks of {told.block[0]}x{told.block[1]}: modelopt's are of 128x128")
        high, wide = ceil_div(rows, told.block[0]), ceil_div(columns, told.block[1])
        shape = (high, 1, wide, 1) if modelopt else (high, wide)
    size = 1
    for length in shape:
        size *= length
    if size != layer.scales.size:
        raise _misfit(layer, f"{layer.scales.size} scales where {size} are due")
    return shape


def _misfit(layer: QuantizedLayer, what: str) -> RepairError:
    return RepairError(f"{layer.codes.shard}: {layer.scales.name}: {what}")
