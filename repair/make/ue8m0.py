"""DeepSeek's FP8 weights with power-of-two scales per block: the same weights under float32 scales."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.declaration import Activation, Algorithm, Family
from auditor.formats.base import block_shape
from auditor.layer import QuantizedLayer
from quant.cast import decode
from quant.codes import E8M0
from quant.errors import NumericError, RepairError
from quant.mx import require_no_nan
from quant.scheme import FP8_BLOCK
from repair.make.assemble import Remade
from repair.make.convertrow import Into
from repair.make.layouts import FP8
from repair.make.mxrows import consumed
from repair.make.shard import Copy, Fill, Piece
from repair.restore_pieces import read_array


def is_ue8m0(layer: QuantizedLayer) -> bool:
    """Whether a layer is FP8 with E8M0 scales per block of rows and columns."""
    scheme = layer.format.scheme
    return (
        scheme is not None and scheme.scale is E8M0 and scheme.element is FP8_BLOCK.element and len(scheme.block) == 2
    )


def convert_ue8m0(layer: QuantizedLayer, into: Into) -> Remade:
    """The matrix with its scales as float32, which holds every power of two of E8M0 exactly.

    RepairError when the shapes show no block, and while writing on scale code 255 (NaN).
    """
    codes, scales, target = layer.codes, layer.scales, FP8[into.layout]
    block = block_shape(codes.shape, scales.shape)
    if block is None or len(codes.shape) != 2:
        shapes = f"shapes {list(codes.shape)} and {list(scales.shape)}"
        raise RepairError(f"{codes.shard}: {codes.name} and {scales.name}: {shapes} are no blocks of a matrix")
    entries = (target.codes(layer.module, codes.shape), target.scales(layer.module, scales.shape, "F32"))

    def pieces() -> Iterator[Piece]:
        raw = read_array(into.sources, scales, 0, scales.nbytes).reshape(scales.shape)
        try:
            require_no_nan(raw)
        except NumericError as error:
            raise RepairError(f"{scales.shard}: {scales.name}: {error}") from None
        yield Copy(entries[0].name, 0, into.sources, codes, 0, codes.nbytes)
        yield Fill(entries[1].name, 0, decode(E8M0, raw).astype("<f4", order="C").tobytes())

    told = Algorithm("FP8_PB_WO", Family.FP8_BLOCK, Activation.DYNAMIC, None, block)
    return Remade(codes.shard, consumed(layer), entries, (pieces,), (layer.module,), told)
