"""What a plan does to each layer: bytes, rules, and how far its weights are from where they should be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.finding import Safety
from auditor.formats.base import Role
from auditor.layer import QuantizedLayer
from quant.errors import RepairError
from repair.effect import SOURCE, Effect, against_source
from repair.patch import Plan

if TYPE_CHECKING:
    from repair.build import Built, SourceFixes

WEIGHTS = frozenset({Role.CODES, Role.SCALES, Role.GLOBAL, Role.ZERO_POINT})


class LayerChange(NamedTuple):
    """What a plan does to one layer (or to tensors of no layer, or to a file, under its name)."""

    layer: str
    nbytes: int
    rules: tuple[str, ...]
    effects: tuple[Effect, ...]


def by_layer(built: Built, plan: Plan) -> list[LayerChange]:
    """The plan's patches and texts by layer, in order of file and offset.

    A layer has one effect, against the source, where there is a source that has the layer; else those of its repairs.
    """
    roles = built.desk.ctx.recognised.roles
    sizes: dict[str, int] = {}
    rules: dict[str, set[str]] = {}
    for patch in plan.patches:
        known = roles.get(patch.tensor)
        name = known[0].name if known else patch.tensor
        sizes[name] = sizes.get(name, 0) + patch.length
        rules.setdefault(name, set()).update(patch.rule.split("+"))
    for text in plan.texts:
        sizes[text.file] = len(text.new or b"")
        rules[text.file] = set(text.rule.split("+"))
    effects: dict[str, list[Effect]] = {}
    for effect in (e for r in built.repairs for e in r.effects):
        effects.setdefault(effect.layer, []).append(effect)
    effects.update((name, [effect]) for name, effect in built.against.items())
    return [LayerChange(n, sizes[n], tuple(sorted(rules[n])), tuple(effects.get(n, ()))) for n in sizes]


def measure_against(built: Built, source: SourceFixes) -> None:
    """Measure every layer whose weights will change against its source, as stored and as planned.

    Repairs that were not made from the source then show these errors, in place of those against the stored weights.
    A layer that the source lacks, or that was not made from it, keeps what it has.
    """
    restored = {e.layer: e for r in built.repairs if r.safety is Safety.RESTORED for e in r.effects if e.of == SOURCE}
    for layer in _changed(built):
        alone = sum(layer.name in repair.layers for repair in built.repairs) == 1
        effect = restored[layer.name] if alone and layer.name in restored else _against(layer, built, source)
        if effect is not None:
            built.against[layer.name] = effect
    for number, repair in enumerate(built.repairs):
        known = {name: built.against[name] for name in repair.layers if name in built.against}
        if known and repair.safety is not Safety.RESTORED:
            rest = (e for e in repair.effects if e.layer not in known)
            built.repairs[number] = repair._replace(effects=(*known.values(), *rest))


def _changed(built: Built) -> Iterator[QuantizedLayer]:
    """Layers of which a part that makes weights is planned to change."""
    overlay = built.desk.overlay
    for layer in built.desk.ctx.layers:
        if any(overlay.touched(ref) for role, ref in layer.parts.items() if role in WEIGHTS):
            yield layer


def _against(layer: QuantizedLayer, built: Built, source: SourceFixes) -> Effect | None:
    from repair.measure_error import layer_error

    try:
        source.expect_fit(layer, built.desk)
        before, after = (layer_error(layer, source.source, reader) for reader in (built.desk.ctx, built.desk))
    except RepairError:
        return None
    return against_source(layer.name, before, after)
