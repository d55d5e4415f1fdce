"""CFG106: MXFP4 scales that counted exponents from 125 are counted from 127."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from auditor.finding import Finding, Safety
from auditor.layer import QuantizedLayer
from auditor.rules.cfg106_old_exponent_bias import ROOM
from repair.effect import Effect
from repair.fixes import jsontext
from repair.fixes.config import declarations
from repair.fixes.desk import Desk, pieces
from repair.fixes.proposal import Edit, Left, Proposal, TextEdit

FIRST_GOOD = "0.14.0"
_STEP = 1 << 20


def fix(finding: Finding, desk: Desk) -> Iterator[Proposal | Left]:
    """2 more in every scale byte, and the version that writes such bytes; refused where a byte has no room."""
    layers = [layer for layer in desk.ctx.layers if layer.format.name == "ct-mxfp4"]
    for layer in layers:
        for at, length in pieces(layer.scales.nbytes, _STEP):
            top = int(np.frombuffer(desk.read(layer.scales, at, length), np.uint8).max())
            if top > ROOM:
                reason = f"{layer.scales.name} has the byte {top}: adding 2 would overflow, so the bias was not 125"
                yield Left(finding.code, finding.tensor, reason, finding.count)
                return
    texts = []
    for declared, base in declarations(desk):
        text = desk.text(declared.file)
        texts.append(TextEdit(declared.file, jsontext.put(text, (*base, "version"), FIRST_GOOD).encode()))
    yield Proposal(
        finding.code,
        finding.tensor,
        Safety.GUESS,
        f"the version is the only evidence; it becomes {FIRST_GOOD}, so that nobody adds 2 again",
        len(layers),
        "every scale byte + 2: weights four times as large",
        chain(texts, _edits(desk, layers)),
        tuple(layer.name for layer in layers),
        tuple(Effect(layer.name, "the true weights", 0.75, 0.0) for layer in layers),
    )


def _edits(desk: Desk, layers: list[QuantizedLayer]) -> Iterator[Edit]:
    for layer in layers:
        for at, length in pieces(layer.scales.nbytes, _STEP):
            old = np.frombuffer(desk.read(layer.scales, at, length), np.uint8)
            yield Edit(layer.scales, at, (old + np.uint8(2)).tobytes())
