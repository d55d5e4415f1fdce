"""What only whole weights tell about a range search: after how many steps it ended, and the largest range it left."""

from __future__ import annotations

import numpy as np

from auditor.layer import QuantizedLayer
from quant import rounding
from quant.floats import words
from quant.shrink import shrunk_amax
from repair.restore_recipes import Recipe
from repair.source import Source, finite_amax

_LOOK = 1 << 17  # weights searched at a time to see where the search ended


def steps_taken(source: Source, layer: QuantizedLayer, recipe: Recipe) -> int:
    """After how many steps the search of a layer ended: once ``patience`` steps in a row gained for no block of it.

    Reads no more of the layer than it takes to know.  Raises RepairError when the source lacks it or is not finite.
    """
    if recipe.search is None:
        return 0
    gained = np.zeros(recipe.search.steps, np.bool_)
    for chunk in source.chunks(layer, _LOOK):
        finite_amax(chunk, layer)
        gained |= shrunk_amax(chunk.weights, recipe.search, word=recipe.word)[1]
        if recipe.search.stop(gained) == recipe.search.steps:
            break
    return recipe.search.stop(gained)


def largest_range(source: Source, layer: QuantizedLayer, recipe: Recipe) -> np.float32:
    """The largest amax that the search leaves in a layer; only blocks that may hold it are searched.

    Raises RepairError when the source lacks the layer or is not finite.
    """
    best = np.float32(0)
    for chunk in source.chunks(layer):
        finite_amax(chunk, layer)
        raw_BN = words(chunk.weights)[1].reshape(-1, 16)
        amax_B = rounding.block_amax(raw_BN, 16).reshape(-1)
        first = int(np.argmax(amax_B))
        best = max(best, recipe.block_amax(raw_BN[first : first + 1], 16).max())
        most = np.float32(recipe.search.expand if recipe.search else 1) * np.float32(1.01)  # and what rounding adds
        rest = raw_BN[amax_B * most >= best]
        if len(rest):
            best = max(best, recipe.block_amax(rest, 16).max())
    return np.float32(best)
