"""`audit requantize` for other programs: one JSON object, fields may be added, never renamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.jsonfile import SCHEMA_VERSION
from reports.jsontext import Json, pretty

if TYPE_CHECKING:
    from repair.make.folder import Made
    from repair.make.requantise import Plan
    from repair.make.requantise_row import Kind


def render(source: str, plan: Plan, made: Made | None, rows: Sequence[Kind], total: Kind) -> str:
    """What is planned (``made`` None: the sums of errors are not known), or what was made."""
    document: dict[str, Json] = {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "recipe": {"name": plan.recipe.name, "layout": plan.recipe.layout.value, **plan.recipe.identity()},
        "algorithm": plan.algorithm.name,
        "written": made is not None,
        "kinds": [_kind(kind, made is not None) for kind in rows],
        "total": _kind(total, made is not None),
        "left": [{"tensor": one.tensor, "reason": one.reason} for one in plan.found.left],
        "notes": list(plan.notes),
    }
    if made is not None:
        document["target"] = {
            "folder": str(made.folder),
            "shards": made.shards,
            "bytes": made.nbytes,
            "resumed": made.resumed,
            "files": list(made.carried.files),
            "left_out": list(made.carried.left_out),
        }
    return pretty(document)


def _kind(kind: Kind, measured: bool) -> dict[str, Json]:
    found: dict[str, Json] = {
        "weights": kind.name,
        "modules": kind.modules,
        "bytes_in": kind.bytes_in,
        "bytes_out": kind.bytes_out,
    }
    if measured:
        sqnr = kind.errors.sqnr
        found |= {
            "method": kind.method,
            "amax": list(kind.amax),
            "mse": kind.errors.mse,
            "sqnr_db": sqnr if math.isfinite(sqnr) else None,
        }
    return found
