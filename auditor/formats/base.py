"""What an on-disk layout is: data that names its tensors and says how their numbers combine."""

from __future__ import annotations

import enum
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

from auditor.tensorref import FLOAT_DTYPES
from quant.codes import FloatCode
from quant.scheme import GlobalScale, Scheme

Shape = tuple[int, ...]

FLOATS = FLOAT_DTYPES
F32 = frozenset({"F32"})
U8 = frozenset({"U8"})
FP8 = frozenset({"F8_E4M3"})
E8M0_BYTES = frozenset({"U8", "F8_E8M0"})
SCALARISH = FLOATS | frozenset({"F8_E4M3", "F8_E8M0", "U8"})  # what a damaged export may store a scale in


class Role(enum.Enum):
    """What a tensor is to its layer."""

    CODES = "codes"  # the quantised weights
    SCALES = "scales"  # per block, channel or tensor
    GLOBAL = "global"  # second-level scale of NVFP4
    INPUT = "input"  # activation scale (or its reciprocal, where the global is one)
    OUTPUT = "output"
    PRE_QUANT = "pre_quant"  # AWQ: multiplies the input before it is quantised
    LORA_A = "lora_a"  # SVDQuant's low-rank branch
    LORA_B = "lora_b"
    ZERO_POINT = "zero_point"
    OTHER = "other"  # shapes, group indices, quantiser states

    __hash__ = object.__hash__  # members are singletons; the default hashes the name, in Python, at every look-up


# Roles that are read at scale depth and judged by rules of their own.
SCALE_ROLES = frozenset({Role.SCALES, Role.GLOBAL, Role.INPUT, Role.OUTPUT, Role.PRE_QUANT})


class GateUp(enum.Enum):
    """How a fused gate_up tensor orders its output rows."""

    NONE = "none"
    CONCATENATED = "concatenated"  # all gate rows, then all up rows
    INTERLEAVED = "interleaved"  # gate 0, up 0, gate 1, up 1, ...


class Part(NamedTuple):
    """One tensor of a layer: name suffix, the dtypes it is recognised in, those that loaders accept."""

    suffix: str
    dtypes: frozenset[str]
    usual: frozenset[str] | None = None  # None: every recognised dtype is fine
    required: bool = True
    scalar: bool = False  # one number per tensor (or per expert)


@dataclass(frozen=True, eq=False)  # there is one of each: identity is equality, and hashable
class Format:
    """A layout.  ``scheme`` says how its numbers combine; None for the integer formats, which are not audited.

    ``axis`` is the axis of the stored codes along which nibbles pair and blocks run: -1 for [N, K/2], -2 for
    transposed 3-D experts [E, K/2, N].  ``names`` gives the name a quant_method uses for the same layout.
    ``fits`` looks at the shapes of the parts and decides between layouts whose names and dtypes agree.
    """

    name: str
    parts: Mapping[Role, Part]
    scheme: Scheme | None = None
    axis: int = -1
    stemmed: bool = False  # names are module.<stem><suffix> rather than module.<suffix>
    gate_up: GateUp = GateUp.NONE
    absent: frozenset[str] = frozenset()  # suffixes that another layout's layer would have
    names: Mapping[str, str] = field(default_factory=dict)
    fits: Callable[[Mapping[Role, Shape]], bool] | None = None
    amax_unit: float = 0.0  # scale = amax / amax_unit for activations; 0 where the layout has none
    unaudited: str = ""  # why its numbers are not checked; "" when they are
    holds: str = "integer"  # what an unaudited layout holds; "" for one that may hold anything

    def name_for(self, method: str) -> str:
        """The layout's name under a declared quant_method."""
        return self.names.get(method, self.name)

    @cached_property
    def element(self) -> FloatCode | None:
        """The format of the codes, None for an integer format."""
        return self.scheme.element if self.scheme else None

    @cached_property
    def scale(self) -> FloatCode | None:
        """The format of the scales per block, None where they are floats."""
        return self.scheme.scale if self.scheme else None

    @cached_property
    def global_scale(self) -> GlobalScale:
        """What the second-level scale does."""
        return self.scheme.global_scale if self.scheme else GlobalScale.NONE

    @cached_property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return self.scheme is not None and self.scheme.packed

    @cached_property
    def block(self) -> tuple[int, int]:
        """(rows, columns) of weights that share a scale, 0 meaning the whole axis."""
        sizes = self.scheme.block if self.scheme else (0, 0)
        return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

    def is_fp4(self) -> bool:
        """Whether the codes are packed E2M1."""
        return self.packed


@cache
def all_formats() -> tuple[Format, ...]:
    """Every `Format` that a file of ``auditor.formats`` defines, sorted by name."""
    import auditor.formats as package

    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name == "base":
            continue
        for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(value, Format) and found.setdefault(value.name, value) is not value:
                raise RuntimeError(f"two formats are called {value.name}")
    return tuple(found[name] for name in sorted(found))


def ceil_div(length: int, block: int) -> int:
    """How many blocks cover an axis; a block of 0 is the whole axis."""
    return -(-length // block) if block else 1


_SIDES = (128, 64, 256, 512, 32, 16)
_BLOCKS = (*((s, s) for s in _SIDES), *((1, s) for s in _SIDES), *((s, 1) for s in _SIDES))


def block_shape(codes: Shape, scales: Shape) -> tuple[int, int] | None:
    """The (rows, columns) block that scales [..., nb, kb] (or [..., nb, 1, kb, 1]) give to codes [..., N, K].

    Powers of two from 16 to 512, squares first; None when no such block explains the shapes.
    """
    return next((block for block in _BLOCKS if fits_block(codes, scales, block)), None)


def fits_block(codes: Shape, scales: Shape, block: tuple[int, int]) -> bool:
    """Whether scales [..., nb, kb] (or [..., nb, 1, kb, 1]) are one per (rows, columns) block of codes [..., N, K]."""
    if len(codes) >= 2 and len(scales) == len(codes) + 2 and scales[-1] == scales[-3] == 1:
        scales = (*scales[:-4], scales[-4], scales[-2])
    if len(codes) < 2:
        return False
    return scales == (*codes[:-2], ceil_div(codes[-2], block[0]), ceil_div(codes[-1], block[1]))
