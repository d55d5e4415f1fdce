"""What the tests of a requantised checkpoint share: making one, and reading it without the tool."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auditor.checkpoint import open_checkpoint
from repair.make.activations import Activations
from repair.make.folder import Made, make
from repair.make.recipe import Recipe
from repair.make.requantise import Plan, job, plan
from repair.make.sources import Sources
from tests.raw import WIDTH, Raw, stored

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
CORPUS = EXPORTS.parent / "corpus"


def requantise(
    root: Path,
    target: Path,
    recipe: Recipe,
    scales: Activations | None = None,
    jobs: int = 1,
    others: Sequence[Sources] = (),
) -> tuple[Plan, Made]:
    """Plan and make."""
    checkpoint = open_checkpoint(root)
    wanted = plan(checkpoint, recipe, scales)
    with Sources(checkpoint) as sources:
        return wanted, make(job(wanted, sources, others), target, jobs=jobs)


def tensors(root: Path) -> dict[str, Raw]:
    """Every tensor of every shard."""
    found: dict[str, Raw] = {}
    for path in sorted(root.glob("*.safetensors")):
        content = path.read_bytes()
        for name, (dtype, shape, start) in stored(path).items():
            found[name] = Raw(dtype, shape, content[start : start + WIDTH[dtype] * math.prod(shape)])
    return found


def declared(root: Path) -> dict[str, Any]:
    """The quantization_config."""
    found: dict[str, Any] = json.loads((root / "config.json").read_text())["quantization_config"]
    return found


def split(name: str) -> str:
    """The module of a tensor."""
    return name.rpartition(".")[0]


def dequantised(made: dict[str, Raw], module: str) -> NDArray[np.float64]:
    """A matrix [out, in] in exact arithmetic: float64 holds every product of these three factors."""
    packed = "weight_packed" if f"{module}.weight_packed" in made else "weight"
    codes, scales = made[f"{module}.{packed}"].array(), made[f"{module}.weight_scale"].array()
    if packed == "weight":
        wide = made[f"{module}.weight_scale_2"].values().reshape(())
    else:
        wide = 1 / made[f"{module}.weight_global_scale"].values().reshape(())
    return values(codes, scales) * wide


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def values(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Codes [..., K / 2] under E4M3 scales [..., K / 16], without the second-level scale: [..., K]."""
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    exponent, mantissa = (scales >> 3).astype(np.int64), (scales & 7).astype(np.float64)
    step = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    return np.asarray(_E2M1[nibbles] * np.repeat(step, 16, -1))
