"""How each layout names and shapes the tensors of one quantised weight: what a new checkpoint's tensors are called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from auditor.formats import ct_nvfp4, fp8, modelopt_3d, modelopt_nvfp4
from auditor.formats.base import Format, Role, Shape
from quant.errors import RepairError
from quant.scheme import GlobalScale
from repair.shardheader import Entry


class Layout(StrEnum):
    """Whose habits a new checkpoint follows."""

    COMPRESSED_TENSORS = "compressed-tensors"
    MODELOPT = "modelopt"


@dataclass(frozen=True)
class Target:
    """One kind of weight in one layout.  ``scalar``: the shape of its lone numbers.

    compressed-tensors' loaders refuse a scale of shape []; modelopt's exporters write it so.
    """

    layout: Layout
    format: Format
    scalar: Shape

    @property
    def divides(self) -> bool:
        """Whether the global scale and the input scale are divisors: the reciprocals of modelopt's."""
        return self.format.global_scale is GlobalScale.DIVIDE

    def name(self, role: Role, module: str) -> str:
        """The tensor's name; ``module`` of a fused 3-D weight includes its stem: ``...experts.gate_up_proj``.

        RepairError when the layout has no such part.
        """
        part = self.format.parts.get(role)
        if part is None:
            raise RepairError(f"{module}: {self.format.name} has no {role.value}")
        return module + part.suffix if self.format.stemmed else f"{module}.{part.suffix}"

    def lone(self, role: Role, module: str) -> Entry:
        """A scale of one float32 number."""
        return Entry(self.name(role, module), "F32", self.scalar)

    def codes(self, module: str, shape: Shape) -> Entry:
        """The codes, of this shape as stored."""
        return Entry(self.name(Role.CODES, module), "U8" if self.format.packed else "F8_E4M3", shape)

    def scales(self, module: str, shape: Shape, dtype: str = "F8_E4M3") -> Entry:
        """The scales of blocks or channels, of this shape as stored."""
        return Entry(self.name(Role.SCALES, module), dtype, shape)


NVFP4 = {
    Layout.COMPRESSED_TENSORS: Target(Layout.COMPRESSED_TENSORS, ct_nvfp4.FORMAT, (1,)),
    Layout.MODELOPT: Target(Layout.MODELOPT, modelopt_nvfp4.FORMAT, ()),
}
FP8 = {
    Layout.COMPRESSED_TENSORS: Target(Layout.COMPRESSED_TENSORS, fp8.FORMAT, (1,)),
    Layout.MODELOPT: Target(Layout.MODELOPT, fp8.FORMAT, ()),
}
MODELOPT_3D = Target(Layout.MODELOPT, modelopt_3d.FORMAT, ())
