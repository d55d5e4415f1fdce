"""What the tests of restoring share: an export beside its source, and files as they are after a repair."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from auditor.checkpoint import Checkpoint, open_checkpoint
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer, Recognised, recognise
from quant.codes import E2M1
from repair.restore import Restorer
from repair.restore_habits import Habits
from repair.restore_pieces import Files, Overlay, Piece, Reader, read_array
from repair.restore_recipes import Choice
from repair.source import Source

EXPORTS = Path(__file__).parents[1] / "data" / "exports"


@dataclass
class Pair:
    """An open export and its source."""

    checkpoint: Checkpoint
    recognised: Recognised
    files: Files
    source: Source
    habits: Habits
    restorer: Restorer

    def layer(self, name: str) -> QuantizedLayer:
        """The layer whose name ends so."""
        return next(layer for layer in self.recognised.layers if layer.name.endswith(name))

    def sets(self) -> Iterator[tuple[QuantizedLayer, ...]]:
        """Every fused set, and every layer that is in none, once."""
        seen: set[str] = set()
        for layer in self.recognised.layers:
            members = self.habits.members(layer)
            if layer.name not in seen:
                yield members
            seen.update(member.name for member in members)

    def requantised(self) -> Overlay:
        """The export with every layer requantised."""
        return Overlay(self.files, [p for members in self.sets() for p in self.restorer.requantise(members)])


@contextmanager
def pair(export: str | Path, source: str | Path, choice: Choice = Choice.AUTO) -> Iterator[Pair]:
    """An export of tests/data (or at a path) and its source."""
    checkpoint = open_checkpoint(EXPORTS / export)
    recognised = recognise(checkpoint.tensors.values())
    with Source(EXPORTS / source, checkpoint, recognised) as theirs, Files(checkpoint) as files:
        habits = Habits(theirs, files, recognised.layers, choice)
        yield Pair(checkpoint, recognised, files, theirs, habits, Restorer(habits))


def values(layer: QuantizedLayer, reader: Reader) -> dict[Role, NDArray[np.generic]]:
    """Everything of a layer that a repair may change: codes by value where packed (-0 is +0), the rest by byte."""
    found: dict[Role, NDArray[np.generic]] = {}
    for role in (Role.CODES, Role.SCALES, Role.GLOBAL):
        ref = layer.get(role)
        if ref is None:
            continue
        raw = read_array(reader, ref, 0, ref.nbytes)
        packed = role is Role.CODES and layer.format.packed
        found[role] = E2M1.values[np.stack([raw & 15, raw >> 4])] if packed else raw
    return found


def assert_equal(layer: QuantizedLayer, ours: Reader, theirs: Reader) -> None:
    """Codes by value, scales and global scale by byte."""
    mine, wanted = values(layer, ours), values(layer, theirs)
    for role, expected in wanted.items():
        np.testing.assert_array_equal(mine[role], expected, f"{layer.name} {role}")


def written(folder: str | Path, to: Path, pieces: Iterable[Piece]) -> Path:
    """A copy of a checkpoint with the pieces in place."""
    shutil.copytree(EXPORTS / folder, to)
    for piece in pieces:
        with open(to / piece.ref.shard, "r+b") as file:
            file.seek(piece.ref.start + piece.at)
            file.write(piece.new)
    return to
