"""Quantised layers, recognised from tensors alone: names, dtypes and shapes decide, configuration does not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from auditor.formats.base import Format, Role, Shape, all_formats
from auditor.tensorref import FLOAT_DTYPES, FP8_DTYPES, TensorRef

# Tensors that hold codes when no format explains them; I32 and wider hold indices and packed integers.
CODE_DTYPES = FP8_DTYPES | {"U8", "I8", "F4", "F6_E2M3", "F6_E3M2"}
# Leaves that only a quantised layer has: alone, they lost their weight.
SCALE_LEAVES = frozenset({
    "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale", "input_scale", "input_scale_2",
    "input_global_scale", "scale_weight", "scale_input", "pre_quant_scale", "weight_zero_point", "input_zero_point",
    "weight_shape", "weight_g_idx", "comfy_quant",
})  # fmt: skip
# FP8 KV-cache scales and NVFP4 affine biases, by the last part of their names.
KV_LEAVES = frozenset({"k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale", "k_bias", "v_bias"})
_KV_CACHE_PARENTS = ("k_cache", "v_cache", "kv_cache")


class Geometry(NamedTuple):
    """How block scales lie over packed codes, both seen as 2-D: scales [rows, inner], codes [rows * unit, inner].

    ``unit``: bytes of packed codes per block; ``inner`` is 1 unless blocks run along axis -2.
    """

    rows: int
    inner: int
    unit: int


class QuantizedLayer:
    """One quantised weight: its parts by role.  ``module`` is the prefix a server knows, ``name`` adds the stem.

    ``codes``: the quantised weights.  ``scales``: those per block, channel or tensor.  ``global_scale``: the
    second-level scale of NVFP4, ``input_scale``: the activation scale, None where there is none.  Never changed.
    """

    __slots__ = (
        "_geometry", "codes", "format", "global_scale", "input_scale", "leaf", "leaves", "module", "name", "parts",
        "scales",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        module: str,
        format: Format,
        parts: Mapping[Role, TensorRef],
        leaves: Mapping[str, TensorRef] | None = None,
    ) -> None:
        """``leaves``: everything in the module."""
        self.name, self.module, self.format, self.parts = name, module, format, parts
        self.leaves: Mapping[str, TensorRef] = leaves or {}
        # Rules ask for these hundreds of times a layer.
        self.codes = parts[Role.CODES]
        self.global_scale = parts.get(Role.GLOBAL)
        self.input_scale = parts.get(Role.INPUT)
        self.leaf = name.rpartition(".")[2]  # gate_proj, w1, gate_up_proj
        self._geometry: Geometry | None = None
        if Role.SCALES in parts:  # an unquantised weight that is looked at as a layer has none
            self.scales = parts[Role.SCALES]
            self._geometry = _geometry(format, self.codes.dtype, self.codes.shape, self.scales.shape)

    def get(self, role: Role) -> TensorRef | None:
        """The part with this role, None when the layer has none."""
        return self.parts.get(role)

    def dims(self) -> tuple[int, int]:
        """(N, K): output rows (over all experts of a fused tensor) and input columns."""
        shape = self.codes.shape
        if not shape:
            return 1, 1
        if self.format.name == "gpt-oss-mxfp4" and len(shape) == 4:
            return shape[0] * shape[1], shape[2] * 32
        axis = self.format.axis if len(shape) >= -self.format.axis else -1
        columns = shape[axis] * (2 if self.format.packed and self.codes.dtype != "F4" else 1)
        rows = self.codes.size // shape[axis] if shape[axis] else 0
        return rows, columns

    def geometry(self) -> Geometry | None:
        """How scales lie over packed codes; None when the shapes do not agree, or the codes are not FP4."""
        return self._geometry


@lru_cache(4096)  # layers are many, shapes are few
def _geometry(fmt: Format, dtype: str, shape: Shape, scales: Shape) -> Geometry | None:
    if not fmt.is_fp4() or fmt.scale is None:
        return None
    unit, blocks = fmt.block[1] // 2, math.prod(scales)
    if len(shape) == len(scales) + 1 and shape[-1] == unit:  # [..., K/32, 16]
        return Geometry(blocks, 1, unit) if shape[:-1] == scales else None
    if len(shape) != len(scales) or len(shape) < -fmt.axis or dtype == "F4":
        return None
    if fmt.axis == -2:
        if shape[:-2] != scales[:-2] or shape[-1] != scales[-1] or shape[-2] != scales[-2] * unit:
            return None
        return Geometry(blocks // shape[-1], shape[-1], unit) if blocks else Geometry(0, 1, unit)
    if shape[:-1] != scales[:-1] or shape[-1] != scales[-1] * unit:
        return None
    return Geometry(blocks, 1, unit)


@dataclass
class Recognised:
    """All layers of a checkpoint, and the tensors that look quantised but belong to none."""

    layers: list[QuantizedLayer] = field(default_factory=list)
    ambiguous: list[tuple[TensorRef, tuple[str, ...]]] = field(default_factory=list)
    unclaimed: list[TensorRef] = field(default_factory=list)  # codes or scales that no layer has
    kv: list[TensorRef] = field(default_factory=list)
    plain: list[TensorRef] = field(default_factory=list)  # float weights and integer buffers
    roles: dict[str, tuple[QuantizedLayer, Role]] = field(default_factory=dict)


def split(name: str) -> tuple[str, str]:
    """Module and leaf of a tensor's name; ``X.weight.absmax`` is leaf ``weight.absmax`` of module ``X``."""
    for marker in (".weight.", ".weight_quantizer."):
        if marker in name:
            module, _, leaf = name.partition(marker)
            return module, marker[1:] + leaf
    module, _, leaf = name.rpartition(".")
    return module, leaf


class _Match(NamedTuple):
    format: Format
    stem: str
    leaves: tuple[tuple[Role, str], ...]
    claimed: frozenset[str]  # the same, by name alone


def recognise(tensors: Iterable[TensorRef]) -> Recognised:
    """Sort tensors into layers.  Each tensor ends in exactly one place; order follows the names' first use."""
    modules: dict[str, dict[str, TensorRef]] = {}
    for ref in tensors:
        module, leaf = split(ref.name)
        found = modules.get(module)
        if found is None:
            modules[module] = {leaf: ref}
        else:
            found[leaf] = ref
    result = Recognised()
    memo: dict[tuple[tuple[str, str], ...], tuple[_Match, ...]] = {}
    for module, leaves in modules.items():
        signature = tuple(sorted([(leaf, ref.dtype) for leaf, ref in leaves.items()]))
        matches = memo.get(signature)
        if matches is None:
            matches = memo[signature] = _matches({leaf: ref.dtype for leaf, ref in leaves.items()})
        claimed = _claim(module, leaves, matches, result) if matches else ()
        for leaf, ref in leaves.items():
            if leaf not in claimed:
                _sort_out(module, leaf, ref, result)
    return result


def _matches(dtypes: Mapping[str, str]) -> tuple[_Match, ...]:
    """Every format and stem whose required parts are all there; shapes are looked at later."""
    found = []
    for fmt in all_formats():
        suffix = fmt.parts[Role.CODES].suffix
        for leaf in dtypes:
            if not leaf.endswith(suffix) or (not fmt.stemmed and leaf != suffix):
                continue
            stem = leaf[: len(leaf) - len(suffix)]
            if (fmt.stemmed and stem == "weight") or any(stem + other in dtypes for other in fmt.absent):
                continue  # X.weight is a module's own weight, not a fused tensor called "weight"
            present = [
                (role, stem + part.suffix)
                for role, part in fmt.parts.items()
                if dtypes.get(stem + part.suffix) in part.dtypes
            ]
            roles = {role for role, _ in present}
            if all(role in roles for role, part in fmt.parts.items() if part.required):
                found.append(_Match(fmt, stem, tuple(present), frozenset(leaf for _, leaf in present)))
    return tuple(found)


def _claim(
    module: str, leaves: dict[str, TensorRef], matches: tuple[_Match, ...], result: Recognised
) -> set[str] | frozenset[str]:
    if len(matches) == 1 and matches[0].format.fits is None:  # almost all
        _add(module, leaves, matches[0], {role: leaves[leaf] for role, leaf in matches[0].leaves}, result)
        return matches[0].claimed
    by_codes: dict[str, list[tuple[_Match, dict[Role, TensorRef]]]] = {}
    for match in matches:
        parts = {role: leaves[leaf] for role, leaf in match.leaves}
        fits = match.format.fits
        if fits is None or fits({role: ref.shape for role, ref in parts.items()}):
            by_codes.setdefault(parts[Role.CODES].name, []).append((match, parts))
    rivals = _rivals(by_codes)
    claimed: set[str] = set()
    for codes, candidates in by_codes.items():
        match, parts = candidates[0]
        names = {m.format.name for m, _ in candidates} | rivals.get(codes, set())
        if len(candidates) > 1 or codes in rivals:
            result.ambiguous.append((parts[Role.CODES], tuple(sorted(names))))
            claimed.update(leaf for m, _ in candidates for _, leaf in m.leaves)
            continue
        _add(module, leaves, match, parts, result)
        claimed |= match.claimed
    return claimed


def _add(
    module: str, leaves: dict[str, TensorRef], match: _Match, parts: dict[Role, TensorRef], result: Recognised
) -> None:
    name = f"{module}.{match.stem}" if match.stem else module
    layer = QuantizedLayer(name.removeprefix("."), module, match.format, parts, leaves)
    result.layers.append(layer)
    for role, ref in parts.items():
        result.roles[ref.name] = (layer, role)


def _rivals(by_codes: Mapping[str, list[tuple[_Match, dict[Role, TensorRef]]]]) -> dict[str, set[str]]:
    """Codes of one module that share a part, say one weight_scale, and the formats that claim it for the others."""
    if len(by_codes) < 2:
        return {}
    claims: dict[str, dict[str, set[str]]] = {}
    for codes, candidates in by_codes.items():
        for match, parts in candidates:
            for ref in parts.values():
                claims.setdefault(ref.name, {}).setdefault(codes, set()).add(match.format.name)
    rivals: dict[str, set[str]] = {}
    for shared in claims.values():
        for codes in shared if len(shared) > 1 else ():
            rivals.setdefault(codes, set()).update(*shared.values())
    return rivals


def _sort_out(module: str, leaf: str, ref: TensorRef, result: Recognised) -> None:
    if leaf == "scaled_fp8":  # an image-model tool's marker, which holds nothing
        result.plain.append(ref)
    elif is_kv(module, leaf) and ref.dtype in FLOAT_DTYPES | FP8_DTYPES:
        result.kv.append(ref)
    elif ref.dtype in CODE_DTYPES or leaf in SCALE_LEAVES or leaf.endswith(("_weight_scale", "_weight_scale_2")):
        result.unclaimed.append(ref)
    else:
        result.plain.append(ref)


def is_weight_scale(leaf: str) -> bool:
    """Whether a leaf's name says that it scales a weight, in whatever spelling."""
    return "scale" in leaf and leaf not in KV_LEAVES and "input" not in leaf and leaf != "pre_quant_scale"


def is_kv(module: str, leaf: str) -> bool:
    """Whether a tensor is a scale or bias of the KV cache, by its name."""
    if leaf == "output_scale":  # Quark's and old compressed-tensors' spelling
        return module.endswith((".k_proj", ".v_proj"))
    return leaf in KV_LEAVES or (leaf == "scale" and module.endswith(_KV_CACHE_PARENTS))
