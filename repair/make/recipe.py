"""What is to be quantised and how, as a value: modules by pattern, method, activations, KV cache, layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import translate
from functools import cached_property

from repair.make.layouts import Layout


class Method(StrEnum):
    """How block scales are chosen."""

    AMAX = "amax"
    """From each block's largest magnitude, as the layout's exporter does it."""
    MSE = "mse"
    """The least squared error over all 126 E4M3 scales."""


class Inputs(StrEnum):
    """Where input scales come from."""

    NONE = "none"
    """There are none: only weights are quantised (W4A16)."""
    ONE = "one"
    """Every input scale is 1.0: inputs up to 2688 are within range, no calibration."""
    FROM = "from"
    """A calibrated checkpoint of the same model."""


class KvCache(StrEnum):
    """What the KV cache is declared to be."""

    NONE = "none"
    FP8_CAST = "fp8_cast"
    """FP8 under the constant scale 1.0."""


class Ragged(StrEnum):
    """What becomes of a selected matrix whose rows are no multiple of 16."""

    LEAVE = "leave"
    """It stays as it is, with all that a server fuses with it, and is listed."""
    REFUSE = "refuse"
    """Nothing is made."""


# The exporter's own patterns (modelopt_recipes), read against tensor names.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "linears": ("*",),
    "mlp": ("*mlp*", "*.mixer.up_proj.*", "*.mixer.down_proj.*", "*block_sparse_moe*", "*.experts.*"),
    "experts": ("*.experts.*", "*block_sparse_moe*"),
}
# What the exporter disables in every recipe (default_disabled_quantizers), and routers of any name.
DISABLED: tuple[str, ...] = (
    "*block_sparse_moe.gate*", "*linear_attn.conv1d*", "*self_attention.conv1d*", "*linear_attn.in_proj_a*",
    "*linear_attn.in_proj_b*", "*lm_head*", "*mixer.conv1d*", "*mlp.gate.*", "*mlp.shared_expert_gate.*",
    "*output_layer*", "*proj_out.*", "*router*", "mtp.*", "output.*", "*embed_vision*", "*vision_tower*", "*visual*",
    "*vision_model*", "*multi_modal_projector*", "*.gate.weight", "*.wg.weight", "*.mtp.*",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """``modules``, ``exclude``: patterns; ``disabled``: whether DISABLED is excluded as well."""

    name: str
    description: str = ""
    modules: tuple[str, ...] = PRESETS["linears"]
    exclude: tuple[str, ...] = ()
    disabled: bool = True
    method: Method = Method.AMAX
    activations: Inputs = Inputs.NONE
    kv_cache: KvCache = KvCache.NONE
    layout: Layout = Layout.MODELOPT
    ragged: Ragged = Ragged.LEAVE

    def why_not(self, tensor: str) -> str:
        """Why a tensor of this name is not to be quantised; empty when it is.

        A pattern is a shell pattern that must match a whole name: the tensor's, or that without ``.weight``.
        """
        if (found := self._excluded(tensor)) is not None:
            return f"excluded by {found}"
        return "" if self._selected(tensor) is not None else "not selected"

    @cached_property
    def _selected(self) -> _Patterns:
        return _Patterns(self.modules)

    @cached_property
    def _excluded(self) -> _Patterns:
        return _Patterns((*self.exclude, *(DISABLED if self.disabled else ())))

    def identity(self) -> dict[str, str]:
        """Everything that the result depends on, for a resumed run to agree with."""
        return {
            "modules": " ".join(self.modules),
            "exclude": " ".join((*self.exclude, *(DISABLED if self.disabled else ()))),
            "method": self.method.value,
            "activations": self.activations.value,
            "kv_cache": self.kv_cache.value,
            "ragged": self.ragged.value,
        }


class _Patterns:
    """Shell patterns, compiled once; fnmatch's translation never backtracks over a star."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._compiled = [(pattern, re.compile(translate(pattern))) for pattern in dict.fromkeys(patterns)]

    def __call__(self, tensor: str) -> str | None:
        """The first pattern that matches."""
        names = (tensor, tensor.removesuffix(".weight"))
        for pattern, compiled in self._compiled:
            if any(compiled.match(name) for name in names):
                return pattern
        return None
