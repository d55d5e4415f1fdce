"""How an exporter chose scales and codes: the ways there are, and which of them a checkpoint shows.

Exporters agree on what codes mean and differ in the last step of how they are made.  A restored block must be what
*this* exporter would have written, so the sound layers are compared with every way, and the one that gives their
bytes is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quant import fp8, mx, nvfp4, rounding
from quant.cast import decode
from quant.codes import E4M3, E8M0
from quant.errors import RepairError, UsageError
from quant.floats import Floats, Word
from quant.mx import ScaleRule
from quant.nvfp4 import Method
from quant.quantised import Quantised
from quant.rounding import Rule
from quant.scheme import NVFP4, GlobalScale, Scheme
from quant.shrink import EXPANDED, Search, shrunk_amax
from quant.sweep import sweep

Scales = NDArray[np.uint8] | NDArray[np.float32]


class Choice(StrEnum):
    """What a user asks for."""

    AUTO = "auto"
    """Whatever the sound layers show."""
    AMAX = "amax"
    """From each block's amax, in whichever order of rounding the sound layers show."""
    MSE = "mse"
    """The least squared error over all scales (NVFP4); other layouts know amax only."""


@dataclass(frozen=True)
class Recipe:
    """One way to make codes.  Fields that a scheme does not use are left as they are.

    ``method``: NVFP4's choice of block scales; ``word``: precision of the exporter's quotients; ``converted``: a file
    that divides was made from one that multiplies, by inverting the global scale; ``scale_rule`` and ``code_rule``:
    MXFP4 and MXFP8; ``search``: the range search that a block's amax went through first, and after how many steps it
    ended (``stop``, None for all of them).
    """

    name: str
    method: Method = Method.DYNAMIC
    word: Word = Word.FLOAT32
    converted: bool = False
    scale_rule: ScaleRule = ScaleRule.CEIL
    code_rule: Rule = Rule.NEGATIVE
    search: Search | None = None
    stop: int | None = None

    def block_amax(self, w: Floats, size: int) -> NDArray[np.float32]:
        """What the scale of each block of ``size`` is made from, float32 [..., K / size]; ``w`` finite."""
        if self.search is None:
            return rounding.block_amax(w, size)
        return shrunk_amax(w, self.search, size, self.word, self.stop)[0]

    def global_scale(self, scheme: Scheme, amax: np.float32) -> NDArray[np.float32] | None:
        """The second-level scale of a set whose largest magnitude is ``amax``, float32 []; None where there is none."""
        if scheme.global_scale is GlobalScale.NONE:
            return None
        if scheme.global_scale is GlobalScale.MULTIPLY:
            return nvfp4.weight_scale_2(amax, self._norm(), _peak(scheme))
        if self.converted:
            return np.asarray(np.float32(1) / nvfp4.weight_scale_2(amax), np.float32)
        return nvfp4.weight_global_scale(amax, self.word)

    def amax(self, scheme: Scheme, stored: NDArray[np.float32]) -> np.float32:
        """The amax that a stored second-level scale speaks of; RepairError unless it is finite and positive."""
        value = np.float32(stored.reshape(()))
        if not (np.isfinite(value) and value > 0):
            raise RepairError(f"the global scale {float(value)} is no positive number: requantise the whole layer")
        unit = self._norm() * _peak(scheme)
        with np.errstate(over="ignore"):
            return np.float32(unit / value if scheme.global_scale is GlobalScale.DIVIDE else unit * value)

    def _norm(self) -> np.float32:
        return nvfp4.NORM_FOUR_OVER_SIX if self.method is Method.FOUR_OVER_SIX else nvfp4.NORM

    def quantise(self, w: Floats, scheme: Scheme, amax: np.float32, wide: NDArray[np.float32] | None) -> Quantised:
        """``w`` [rows, K] with scales of this recipe.

        ``amax``: of the whole set, where the scheme has a scale for the set; ``wide``: the second-level scale to
        work under.  Zero blocks get what the exporter gives them.  Raises NumericError on NaN, infinity and ragged K.
        """
        if wide is not None and self.converted:
            with np.errstate(over="ignore"):
                own = nvfp4.weight_scale_2(amax) if amax > 0 else np.asarray(np.float32(1) / wide, np.float32)
            made = replace(self, converted=False).quantise(w, NVFP4, amax, own)
            return Quantised(scheme, made.stored, made.scales, wide)
        if wide is not None:
            return nvfp4.with_scales(w, self._nvfp4_scales(w, scheme, amax, wide), wide, scheme)
        if scheme.scale is None:
            whole = scheme.block == (0, 0)
            top = np.full((1, 1), amax, np.float32) if whole else fp8.amax_of(w, scheme.block)
            return self.under(w, scheme, fp8.scales_of(top), None)
        if scheme.element is E4M3 and len(scheme.block) == 2:
            return self.under(w, scheme, mx.scale_codes(fp8.amax_of(w, scheme.block), E4M3, self.scale_rule), None)
        return mx.quantise(w, scheme, self.scale_rule, self.code_rule)

    def under(self, w: Floats, scheme: Scheme, scales: Scales, wide: NDArray[np.float32] | None) -> Quantised:
        """``w`` [rows, K] in codes under given scales (uint8 codes or float32).

        Raises NumericError on NaN or infinity in ``w`` or in a scale, and on a float scale that is not positive.
        """
        if wide is not None:
            return nvfp4.with_scales(w, scales.astype(np.uint8, copy=False), wide, scheme)
        if scheme.scale is None:
            return fp8.with_scales(w, scales.astype(np.float32, copy=False), scheme, self.word)
        codes = scales.astype(np.uint8, copy=False)
        if scheme.element is E4M3 and len(scheme.block) == 2:
            mx.require_no_nan(codes)
            return Quantised(scheme, rounding.encode_fp8(w, decode(E8M0, codes), scheme.block, self.word), codes)
        return mx.with_scales(w, codes, scheme, self.code_rule)

    def _nvfp4_scales(
        self, w: Floats, scheme: Scheme, amax: np.float32, wide: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        if self.method is Method.SWEEP:
            return sweep(w, np.asarray(amax, np.float32)).codes
        if self.method is Method.FOUR_OVER_SIX:
            return nvfp4.quantise(w, amax, method=self.method, scheme=scheme).scales.astype(np.uint8, copy=False)
        top = self.block_amax(w, scheme.block[0])
        if scheme.global_scale is GlobalScale.DIVIDE:
            return nvfp4.divide_scales(top, wide, self.word)
        if self.method is Method.STATIC:
            return nvfp4.static_scales(top, np.asarray(amax, np.float32))
        return nvfp4.dynamic_scales(top, wide)


def _peak(scheme: Scheme) -> np.float32:
    return np.float32(1 if scheme.block == (32,) else 6)


def candidates(scheme: Scheme, word: Word, choice: Choice = Choice.AUTO) -> tuple[Recipe, ...]:
    """Every way to make codes of this scheme, the default first; ``word`` is the precision of the source.

    Raises UsageError where the scheme does not have what was chosen.
    """
    if scheme.global_scale is GlobalScale.NONE:
        return _without_global(scheme, word)
    words = dict.fromkeys((word, Word.FLOAT32))
    if scheme.global_scale is GlobalScale.DIVIDE:
        amax = tuple(Recipe(f"amax, quotients in {w}", word=w) for w in words)
        amax += (
            Recipe("amax, converted", converted=True),
            Recipe("amax, static, converted", Method.STATIC, converted=True),
        )
        mse = tuple(Recipe(f"mse, quotients in {w}", Method.SWEEP, w) for w in words)
        mse += (Recipe("mse, converted", Method.SWEEP, converted=True),)
    else:
        amax = (Recipe("amax, dynamic"), Recipe("amax, static", Method.STATIC))
        mse = (Recipe("mse", Method.SWEEP),)
    if scheme.block != (16,):
        if choice is Choice.MSE:
            raise UsageError(f"the mse method is defined for blocks of 16, not of {scheme.block[0]}")
        return amax[:1] if scheme.global_scale is GlobalScale.MULTIPLY else amax
    four = () if scheme.global_scale is GlobalScale.DIVIDE else (Recipe("four over six", Method.FOUR_OVER_SIX),)
    return {Choice.AUTO: amax + mse + four, Choice.AMAX: amax, Choice.MSE: mse}[choice]


def searches(scheme: Scheme, word: Word, declared: Iterable[Search] = ()) -> tuple[Recipe, ...]:
    """The range searches of llm-compressor's MSE observers, those that a config declares first; slow to try.

    Nothing where the scheme is not compressed-tensors' NVFP4.
    """
    if scheme.global_scale is not GlobalScale.DIVIDE or scheme.block != (16,):
        return ()
    known = {Search(): "mse observer", EXPANDED: "mse observer, expanded range"}
    told = {one: known.get(one, "mse observer, settings of the config") for one in declared}
    told |= {one: name for one, name in known.items() if one not in told}
    told |= {replace(one, rounded=True): f"{name}, rounded" for one, name in told.items() if one.expand == 1}
    kinds = dict.fromkeys((word, Word.FLOAT32))
    return tuple(Recipe(f"{name}, in {w}", word=w, search=one) for w in kinds for one, name in told.items())


def _without_global(scheme: Scheme, word: Word) -> tuple[Recipe, ...]:
    if scheme.scale is None:
        return tuple(Recipe(f"amax, quotients in {w}", word=w) for w in dict.fromkeys((Word.FLOAT32, word)))
    if scheme.element is E4M3:
        return tuple(Recipe(f"amax, {rule}", scale_rule=rule) for rule in ScaleRule)
    pairs = (
        (ScaleRule.CEIL, Rule.TIES_DOWN), (ScaleRule.NEAREST, Rule.NEGATIVE), (ScaleRule.FLOOR, Rule.SIGN_BIT),
        (ScaleRule.EVEN, Rule.SIGN_BIT), (ScaleRule.CEIL, Rule.SIGN_BIT),
    )  # fmt: skip
    return tuple(
        Recipe(f"amax, {scales}, {codes.name.lower()}", scale_rule=scales, code_rule=codes) for scales, codes in pairs
    )


@dataclass
class Agreement:
    """Bytes of sound exports that a recipe gives, of those that were compared."""

    recipe: Recipe
    same: int = 0
    looked: int = 0

    @property
    def share(self) -> float:
        """The share that agrees; 0 when nothing was compared."""
        return self.same / self.looked if self.looked else 0.0
