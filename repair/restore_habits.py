"""What the exporter of a checkpoint was in the habit of doing, found by comparing its sound layers with the source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from auditor.groups import fused_sets
from auditor.layer import QuantizedLayer
from quant import fp8
from quant.errors import NumericError, RepairError
from quant.floats import Floats, Word, round_to
from quant.nvfp4 import Method
from quant.quantised import Quantised
from quant.scheme import GlobalScale, Scheme
from repair.restore_pieces import Reader
from repair.restore_recipes import Agreement, Choice, Recipe, candidates, searches
from repair.restore_search import largest_range, steps_taken
from repair.source import Source
from repair.source_codes import WORDS, grid, scheme, step_rows, stored_rows, stored_scales

_SAMPLE = 1 << 16  # weights of one layer that are compared
_LAYERS = 12  # layers of one layout that are compared
_SMALL = 1 << 26  # weights of a set that are read whole only to find a habit
_PLAIN = 0.995  # share of bytes from which on no range search is tried


@dataclass
class Habits:
    """``reader``: the checkpoint's bytes as they are; ``layers``: all its layers; ``choice``: the user's method."""

    source: Source
    reader: Reader
    layers: Sequence[QuantizedLayer]
    choice: Choice = Choice.AUTO
    _recipes: dict[tuple[str, str, Choice], Agreement] = field(default_factory=dict)
    _stops: dict[tuple[str, Recipe], int] = field(default_factory=dict)
    _tops: dict[tuple[str, Recipe], np.float32] = field(default_factory=dict)
    _sets: dict[str, tuple[QuantizedLayer, ...]] = field(default_factory=dict)
    _alike: dict[tuple[str, str], list[QuantizedLayer]] = field(default_factory=dict)  # by layout and leaf
    to_requantise: frozenset[str] | None = None  # layers that a finding asks to be made anew, once they are known

    def __post_init__(self) -> None:
        """Note which layers are fused on load, and which are of one kind."""
        for layer in self.layers:
            self._alike.setdefault((layer.format.name, layer.leaf), []).append(layer)
        for group in fused_sets(self.layers):
            for member in group.members:
                self._sets.setdefault(member.name, group.members)

    def members(self, layer: QuantizedLayer) -> tuple[QuantizedLayer, ...]:
        """The layer's fused set; itself alone where it has none."""
        return self._sets.get(layer.name, (layer,))

    def kin(self, layer: QuantizedLayer) -> list[QuantizedLayer]:
        """Layers that tell about this one, itself first: its fused set, its projection elsewhere, its layout; few."""
        found = {m.name: m for m in (layer, *self.members(layer))}
        same = self._alike.get((layer.format.name, layer.leaf), [])
        others = (some[0] for key, some in self._alike.items() if key[0] == layer.format.name)
        for other in (*same[:9], *islice(others, 9)):
            found.setdefault(other.name, other)
        return list(found.values())

    def recipe(self, layer: QuantizedLayer, choice: Choice | None = None) -> Agreement:
        """The recipe that gives most of the stored bytes of up to a dozen layers of this layout, and how many.

        ``choice``: within what, by default within the user's choice.
        With nothing to compare it is what the config declares or the layout's default, with a share of 0.  Raises
        RepairError when the source has no such layer.
        """
        word = self.source.word(layer)
        within = choice or self.choice
        key = (layer.format.name, word.value, within)
        if key not in self._recipes:
            alike = [other for other in self.layers if other.format is layer.format]
            picked = [alike[i] for i in sorted({int(i) for i in np.linspace(0, len(alike) - 1, 2 * _LAYERS)})]
            picked = sorted(picked, key=lambda one: one.codes.nbytes)[:_LAYERS]
            self._recipes[key] = self._shown(picked, scheme(layer), word, within)
        return self._recipes[key]

    def _shown(self, picked: Sequence[QuantizedLayer], kind: Scheme, word: Word, choice: Choice) -> Agreement:
        """What these layers show, within a choice; range searches are tried where nothing else explains them.

        Where least squares are asked for and the layers show amax, it is the least-squares sweep.  With nothing to
        compare it is the observer that the config declares.
        """
        tried = self._tried(picked, candidates(kind, word, choice))
        best = max(tried, key=lambda a: a.same)  # of equals the first
        if choice is Choice.AMAX or best.share >= _PLAIN:
            return best
        more: list[Agreement] = []
        for recipe in searches(kind, word, self.source.observers):
            more += self._tried(picked, (recipe,))
            if more[-1].share >= _PLAIN:
                break
        if choice is Choice.MSE and more:
            plain = self._tried(picked, candidates(kind, word, Choice.AMAX))
            if max(a.same for a in plain) > max(a.same for a in (*tried, *more)):
                return best
        told = more[:1] if self.source.observers and not best.looked else []  # nothing to compare: as declared
        return max((*told, *tried, *more), key=lambda a: a.same)

    def _tried(self, picked: Sequence[QuantizedLayer], recipes: Sequence[Recipe]) -> list[Agreement]:
        tried = [Agreement(recipe) for recipe in recipes]
        for layer in picked:
            self._compare(layer, tried)
        return tried

    def own(self, recipe: Recipe, layer: QuantizedLayer) -> Recipe:
        """The recipe as it goes for one layer: a range search ends where no block of the whole weight gained any more.

        Raises RepairError when the source lacks the layer or is not finite.
        """
        if recipe.search is None:
            return recipe
        key = (layer.name, recipe)
        if key not in self._stops:
            self._stops[key] = steps_taken(self.source, layer, recipe)
        return replace(recipe, stop=self._stops[key])

    def top(self, recipe: Recipe, layers: Sequence[QuantizedLayer]) -> np.float32:
        """The amax that a recipe's global scale speaks of: of the weights, or of what a range search left of them.

        Raises RepairError when the source lacks a layer or is not finite.
        """
        if recipe.search is None:
            return self.source.amax(layers)
        for layer in layers:
            if (layer.name, recipe) not in self._tops:
                self._tops[layer.name, recipe] = largest_range(self.source, layer, self.own(recipe, layer))
        return max((self._tops[layer.name, recipe] for layer in layers), default=np.float32(0))

    def shared(self, layer: QuantizedLayer) -> tuple[QuantizedLayer, ...]:
        """The layers whose common amax this one's scale stands for.

        A global scale serves a fused set.  Scales per FP8 tensor do in some exports: those of the same projections
        tell, the layer's own set before the others.
        """
        members = self.members(layer)
        kind = scheme(layer)
        if len(members) == 1 or kind.global_scale is not GlobalScale.NONE:
            return members
        if kind.block != (0, 0):
            return (layer,)
        leaves = {m.leaf for m in members}
        peers = [m for m in members if m is not layer]
        for leaf in sorted(leaves):
            peers += [o for o in self._alike.get((layer.format.name, leaf), [])[:16] if o not in members]
        for peer in peers:
            whole = self.members(peer)
            alone, together = self._fp8_scale([peer]), self._fp8_scale(whole)
            stored = stored_scales(peer, self.reader, 0, 0, grid(peer).rows).reshape(-1)[:1]
            if alone != together and stored.tobytes() in (alone, together):
                return members if stored.tobytes() == together else (layer,)
        return (layer,)

    def _fp8_scale(self, layers: Sequence[QuantizedLayer]) -> bytes:
        """The scale per tensor, as float32 bytes, that these layers' common amax gives; nothing without a source."""
        try:
            top = self.source.amax(layers)
        except RepairError:
            return b""
        made = fp8.scales_of(np.asarray([top], np.float32))
        dtype = layers[0].scales.dtype
        return (round_to(made, WORDS[dtype]) if dtype in WORDS else made).tobytes()

    def amax(self, recipe: Recipe, layer: QuantizedLayer, wide: NDArray[np.float32] | None) -> np.float32:
        """The amax that a stored global scale came from: the source's own where it gives just that scale.

        Where the recipe does not look at it, it is what the global scale itself says; so it is where the source is
        not finite.  Raises RepairError when the global scale is no positive number.
        """
        if wide is None:
            return np.float32(0)
        kind = scheme(layer)
        told = recipe.amax(kind, wide)
        if recipe.method is Method.DYNAMIC and not recipe.converted:
            return told
        for members in (self.members(layer), (layer,)):
            try:
                own = self.source.amax(members)
            except RepairError:
                continue
            made = recipe.global_scale(kind, own)
            if made is not None and made.reshape(()) == wide.reshape(()):
                return own
        return told

    def _compare(self, layer: QuantizedLayer, tried: Sequence[Agreement]) -> None:
        """Count, for every recipe, the bytes of the layer's first rows that it gives."""
        shape, high = grid(layer), step_rows(layer)
        rows = min(shape.rows, max(high, _SAMPLE // max(shape.columns, 1) // high * high))
        try:
            stored = stored_rows(layer, self.reader, 0, 0, rows)
            w = self.source.rows(layer, 0, 0, rows)
            for one in tried:
                same, looked = self._agreement(one.recipe, layer, w, stored)
                one.same, one.looked = one.same + same, one.looked + looked
        except RepairError:  # no source, or a broken global scale: this layer says nothing
            return

    def _agreement(self, recipe: Recipe, layer: QuantizedLayer, w: Floats, stored: Quantised) -> tuple[int, int]:
        """(equal, compared) among scales and codes of ``stored`` when ``w`` is quantised under its global scale.

        Codes of equal value count as equal; so does a global scale that this recipe makes.  What cannot be
        quantised counts as different.
        """
        kind, wide = stored.scheme, stored.global_scale
        total = stored.scales.size + stored.stored.size
        same = 0
        if wide is not None:
            small = sum(math.prod(grid(m)) for m in self.members(layer)) <= _SMALL
            made = recipe.global_scale(kind, self.top(recipe, self.members(layer))) if small else None
            same += int(made is not None and made.reshape(()) == wide.reshape(()))
            total += 1
            amax = self.amax(recipe, layer, wide) if small else recipe.amax(kind, wide)
        else:
            amax = np.float32(0)
        try:
            if kind.scale is None and kind.block == (0, 0):
                ours = recipe.under(w, kind, stored.scales, None)
            else:
                ours = held(self.own(recipe, layer).quantise(w, kind, amax, wide), layer, w, recipe)
        except NumericError:
            return same, total
        values = kind.element.values
        codes = (values[ours.codes] == values[stored.codes]).reshape(*stored.stored.shape, -1).all(-1)
        return same + int(np.count_nonzero(codes)) + int(np.count_nonzero(ours.scales == stored.scales)), total


def held(made: Quantised, layer: QuantizedLayer, w: Floats, recipe: Recipe) -> Quantised:
    """The same under the scales that the file can hold, where its dtype is narrower than float32."""
    if made.scheme.scale is not None or layer.scales.dtype not in ("BF16", "F16"):
        return made
    rounded = round_to(made.scales.astype(np.float32, copy=False), WORDS[layer.scales.dtype])
    return recipe.under(w, made.scheme, rounded, None)
