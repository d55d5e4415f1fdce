"""What only the unquantised weights can prove: that they are this layer's, and that a clamp hid large blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditor.layer import QuantizedLayer
from quant import blocks, rounding
from quant.errors import NumericError, RepairError
from quant.floats import Floats
from quant.quantised import Quantised
from quant.scheme import GlobalScale
from repair.restore_habits import Habits
from repair.restore_pieces import Reader
from repair.restore_recipes import Choice, Recipe
from repair.source import Source, finite_amax
from repair.source_codes import global_of, grid, scale_lines, scheme, step_rows, stored_rows

LEAST = 0.95  # share of sound codes that the right source gives; 0.997 and more in real exports
_ENOUGH = 4096  # codes under sound scales that settle it
_SAMPLE = 1 << 16
_OVERFLOW = np.float32(464)  # midpoint to the would-be 480: from here on a bare E4M3 cast overflows
_KEPT = 8


@dataclass
class Fit:
    """Codes under sound scales, and how many of them the source gives under those very scales."""

    same: int = 0
    looked: int = 0

    @property
    def share(self) -> float:
        """The share that agrees; 0 when there was nothing to compare."""
        return self.same / self.looked if self.looked else 0.0


def fit(layer: QuantizedLayer, habits: Habits) -> Fit:
    """How well the source explains a layer: its first rows quantised under the scales the file has.

    Rounding under a given scale is the same in every export, however the scale was chosen; so the right source gives
    nearly all codes, and one that was smoothed or rotated before quantisation does not.  Where a global scale is what
    is broken, the codes that the recipe gives from the start are compared instead.  Codes under a scale that is NaN
    or zero, and blocks of 0x77, are left out.
    """
    shape, high = grid(layer), step_rows(layer)
    rows = min(shape.rows, max(high, _SAMPLE // max(shape.columns, 1) // high * high))
    stored = stored_rows(layer, habits.reader, 0, 0, rows)
    w = habits.source.rows(layer, 0, 0, rows)
    looked = _sound(stored, rows, shape.columns)
    ways = [_under(layer, habits, w, stored), _anew(layer, habits, w)]
    values = stored.scheme.element.values
    found = [values[codes] == values[stored.codes] for codes in ways if codes is not None]
    return Fit(max((int(np.count_nonzero(same & looked)) for same in found), default=0), int(np.count_nonzero(looked)))


def _sound(stored: Quantised, rows: int, columns: int) -> NDArray[np.bool_]:
    """Which codes are numbers under a block scale that is one above zero, and not all 7."""
    scales = stored.scales
    values = stored.scheme.scale.values[scales] if stored.scheme.scale is not None else scales
    looked = _spread(np.isfinite(values) & (values > 0), stored.scheme.block, (rows, columns))
    if stored.scheme.packed:
        lost = (stored.codes.reshape(rows, -1, stored.scheme.block[0]) == 7).all(-1)
        return looked & ~_spread(lost, stored.scheme.block, (rows, columns))
    return looked & np.isfinite(stored.scheme.element.values[stored.codes])


def _under(layer: QuantizedLayer, habits: Habits, w: Floats, stored: Quantised) -> NDArray[np.uint8] | None:
    """Codes of ``w`` under the stored scales; None where no scale is usable."""
    steps = stored.steps()
    sound = np.isfinite(steps) & (steps > 0)
    if not sound.any():
        return None
    scales = np.where(sound, stored.scales, stored.scales[sound][0])  # the others are not looked at
    try:
        return habits.recipe(layer, Choice.AUTO).recipe.under(w, stored.scheme, scales, stored.global_scale).codes
    except NumericError:
        return None


def _anew(layer: QuantizedLayer, habits: Habits, w: Floats) -> NDArray[np.uint8] | None:
    """Codes of ``w`` as the recipe makes them from nothing; None in a layout without a global scale."""
    kind, recipe = scheme(layer), habits.recipe(layer, Choice.AUTO).recipe
    top = habits.top(recipe, habits.members(layer))
    wide = recipe.global_scale(kind, top)
    if wide is None:
        return None
    try:
        return habits.own(recipe, layer).quantise(w, kind, top, wide).codes
    except NumericError:
        return None


def _spread(mask: NDArray[np.bool_], block: tuple[int, ...], shape: tuple[int, int]) -> NDArray[np.bool_]:
    return blocks.spread(mask.astype(np.float32), shape, block) > 0


def require_source(layer: QuantizedLayer, habits: Habits) -> Fit:
    """The fit of a layer, or of its kin where it has too few sound codes itself: never less than LEAST.

    Kin are its fused set, layers of the same projection, then others of its layout.  Raises RepairError when the
    source does not give their codes, when nothing can be compared, and for a layer whose weights were changed before
    quantisation as its tensors show (AWQ, SVDQuant).
    """
    changed = [role.value for role in layer.parts if role.value in ("pre_quant", "lora_a")]
    if changed:
        raise RepairError(f"{layer.codes.name}: the weights were changed before quantisation ({changed[0]})")
    found = Fit()
    for one in habits.kin(layer):
        try:
            more = fit(one, habits)
        except RepairError:
            if one is layer:
                raise
            continue
        found = Fit(found.same + more.same, found.looked + more.looked)
        if found.looked >= _ENOUGH:
            break
    if not found.looked:
        raise RepairError(f"{layer.codes.name}: no sound block shows whether the source is what it was made from")
    if found.share < LEAST:
        source = habits.source.regions(layer)[0].matrix.ref.name
        raise RepairError(
            f"{layer.codes.name}: the source's {source} is not what it was made from"
            f" ({found.share:.1%} of {found.looked} codes agree):"
            " another model's, or changed before quantisation (AWQ, SmoothQuant, a rotation)"
        )
    return found


@dataclass(frozen=True)
class Saturation:
    """Blocks whose largest source weight is beyond 6 * 464 * global scale: their scale was clamped.

    ``first``: flat indices into the scales; ``worst``: the largest ratio of a block's amax to the 6 * 448 * global
    scale that the file can express.
    """

    count: int = 0
    first: tuple[int, ...] = ()
    worst: float = 0.0


def saturation(layer: QuantizedLayer, source: Source, reader: Reader, recipe: Recipe | None = None) -> Saturation:
    """The proof of hidden saturation, from every block of the source; nothing where the layout has no global scale.

    ``recipe``: how the export was made, where it shrinks a block's amax on purpose.
    Raises RepairError when the source lacks the layer or is not finite, or the global scale is no positive number.
    """
    kind, lines, shape = scheme(layer), scale_lines(layer), grid(layer)
    if kind.global_scale is GlobalScale.NONE or lines is None:
        return Saturation()
    count, worst = 0, 0.0
    first: list[int] = []
    for chunk in source.chunks(layer):
        finite_amax(chunk, layer)
        wide = global_of(layer, reader, chunk.expert)
        if wide is None or not (np.isfinite(wide) and wide > 0):
            raise RepairError(f"{layer.codes.name}: its global scale is no positive number")
        unit = np.float32(6) / wide if kind.global_scale is GlobalScale.DIVIDE else np.float32(6) * wide
        made_from = rounding.block_amax if recipe is None else recipe.block_amax
        ratio = made_from(chunk.weights, kind.block[0]) / unit
        over = np.argwhere(ratio > _OVERFLOW)
        count += len(over)
        worst = max(worst, float(ratio.max(initial=0)) / 448)
        for row, column in over[: _KEPT - len(first)].tolist():
            row += chunk.first
            flat = column * shape.rows + row if lines.across else row * lines.width + column
            first.append(chunk.expert * shape.rows * lines.width + flat)
    return Saturation(count, tuple(sorted(first)), worst)
