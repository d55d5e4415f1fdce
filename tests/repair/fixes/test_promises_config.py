"""What a finding about the configuration offers is what its repair does, at every risk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from auditor.audit import Depth
from auditor.engine import examine
from auditor.finding import Safety, Severity
from repair.build import build
from repair.fixes.catalogue import ENTRIES
from repair.fixes.desk import Options
from tests.damages import declared
from tests.damages.harness import DAMAGES
from tests.forge import Model, make
from tests.layouts import LAYOUTS

RISKS = (Safety.EXACT, Safety.BOUNDED, Safety.GUESS)
OURS = [name for name, damage in DAMAGES.items() if damage.do.__module__ == declared.__name__]


def fewer_inputs(model: Model) -> None:
    """No activation scale anywhere."""
    parts = {layer.input_scale for layer in model.layers}
    model.tensors = {name: tensor for name, tensor in model.tensors.items() if name not in parts}


def idle_lists(model: Model) -> None:
    """Every list of exclusions is empty."""
    for one in model.quantization():
        for key in ("ignore", "exclude_modules", "exclude", "modules_to_not_convert", "ignored_layers"):
            if key in one:
                one[key] = []


def strings_for_lists(model: Model) -> None:
    """Every list of exclusions is a string: the head's name with a blank."""
    for one in model.quantization():
        for key in ("ignore", "exclude_modules", "exclude", "modules_to_not_convert", "ignored_layers"):
            if key in one:
                one[key] = f"{model.layers[0].name} "


def damaged(layout: str) -> Iterator[tuple[str, Model]]:
    """The layout with every damage to its configuration that fits."""
    for name in OURS:
        model = make(layout).copy()
        for layer in DAMAGES[name].fits(model)[:1]:
            DAMAGES[name].do(model, layer, lambda options: options[0])
            yield name, model
    for change in (fewer_inputs, idle_lists, strings_for_lists):
        model = make(layout).copy()
        change(model)
        yield change.__name__, model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_remedy_is_what_the_repair_does(layout: str) -> None:
    for name, model in damaged(layout):
        with TemporaryDirectory() as folder:
            root = model.write(Path(folder))
            ctx, audit = examine(root, depth=Depth.HEADERS)
            found = [f for f in audit.findings if f.code.startswith("CFG") and f.severity > Severity.INFO]
            for risk in RISKS:
                built = build(ctx, audit.findings, Options(risk, include=frozenset(ENTRIES), rewrite=True))
                done = [(r.rule, r.tensor, r.safety) for r in built.repairs if r.rule.startswith("CFG")]
                offered = [(f.code, f.tensor, f.fix.safety) for f in found if f.fix and f.fix.safety <= risk]
                assert sorted(done) == sorted(offered), (name, risk, built.left)
            ctx.close()
