"""MXFP4 as compressed-tensors writes it: weight_packed U8 [N, K/2], weight_scale U8 (E8M0) [N, K/32].

Its MXFP6 has the same names: 24 bytes of weight_packed to a scale tell it.
"""

from __future__ import annotations

from collections.abc import Mapping

from auditor.formats.base import E8M0_BYTES, U8, Format, Part, Role, Shape
from quant.scheme import MXFP4


def _is_six_bits(shapes: Mapping[Role, Shape]) -> bool:
    codes, scales = shapes[Role.CODES], shapes[Role.SCALES]
    return len(codes) == len(scales) >= 2 and scales[:-1] == codes[:-1] and scales[-1] * 24 == codes[-1] > 0


def _is_four_bits(shapes: Mapping[Role, Shape]) -> bool:
    return not _is_six_bits(shapes)


FORMAT = Format(
    name="ct-mxfp4",
    parts={Role.CODES: Part("weight_packed", U8), Role.SCALES: Part("weight_scale", E8M0_BYTES)},
    scheme=MXFP4,
    fits=_is_four_bits,
)
MXFP6 = Format(
    name="ct-mxfp6",
    parts=FORMAT.parts,
    fits=_is_six_bits,
    unaudited="MXFP6 is not audited: only NVFP4, MXFP4, MXFP8 and FP8 are; file structure was checked",
)
