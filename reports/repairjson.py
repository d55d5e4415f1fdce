"""A repair for other programs: one JSON object, fields may be added, never renamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from repair.layerchange import by_layer
from reports.jsonfile import SCHEMA_VERSION, settings
from reports.jsontext import Json, pieces
from reports.report import EVERYTHING, Terms

if TYPE_CHECKING:
    from repair.build import Built, Repair
    from repair.effect import Effect
    from repair.fixes.proposal import Left
    from repair.patch import Plan
    from reports.repairtext import Done


def render(checkpoint: str, built: Built, plan: Plan, outcome: Done | None, terms: Terms = EVERYTHING) -> Iterator[str]:
    """The plan, and what came of it where it was carried out, bit by bit."""
    options = built.desk.options
    document: dict[str, Json] = {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": checkpoint,
        "risk": options.risk.label,
        "policy": options.policy.value if options.floor is None else f"floor={options.floor!r}",
        "written": outcome is not None,
        "repairs": map(_repair, built.repairs),
        "skipped": map(_left, built.left),
        "copy_only": map(_left, built.copied),
        "rewritten": sorted(built.desk.tensors),
        "layers": (
            {"layer": row.layer, "bytes": row.nbytes, "rules": list(row.rules), "effects": _effects(row.effects)}
            for row in by_layer(built, plan)
        ),
        "settled": ({"code": code, "tensor": tensor} for code, tensor in built.settled),
        "patches": len(plan.patches),
        "bytes": plan.total,
        "files": list(plan.touched),
        "wider": {safety.label: n for safety, n in sorted(built.wider.items())},
        "settings": settings(terms),
    }
    if outcome is not None:
        document["outcome"] = {
            "entry": outcome.entry,
            "proof": outcome.proof,
            "where": outcome.where,
            "findings_gone": outcome.gone,
            "findings_new": list(outcome.fresh),
            "errors_left": outcome.errors,
        }
    return pieces(document)


def _left(item: Left) -> dict[str, Json]:
    return {"code": item.rule, "tensor": item.tensor, "reason": item.reason, "count": item.places}


def _repair(repair: Repair) -> dict[str, Json]:
    return {
        "code": repair.rule,
        "tensor": repair.tensor,
        "safety": repair.safety.label,
        "reason": repair.reason,
        "places": repair.places,
        "change": repair.change,
        "layers": list(repair.layers),
        "group": repair.group,
        "effects": _effects(repair.effects),
    }


def _effects(effects: Iterable[Effect]) -> list[Json]:
    return [{"layer": e.layer, "of": e.of, "before": e.before, "after": e.after, "note": e.note} for e in effects]
