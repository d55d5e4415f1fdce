"""Every damage and every oddity, by name."""

from __future__ import annotations

from tests.damages import blocks, declared, floats, oddities, scalars, shapes
from tests.damages.harness import DAMAGES, ODDITIES, Damage, Done, Pick

__all__ = [
    "DAMAGES",
    "ODDITIES",
    "Damage",
    "Done",
    "Pick",
    "blocks",
    "declared",
    "floats",
    "oddities",
    "scalars",
    "shapes",
]
