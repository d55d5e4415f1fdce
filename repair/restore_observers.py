"""The range searches that a checkpoint's config names for its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quant.errors import NumericError
from quant.shrink import EXPANDED, Search

_OBSERVERS = {"mse": Search(), "memoryless_mse": Search(), "nvfp4_expanded_mse": EXPANDED}
_SETTINGS = ("maxshrink", "patience", "grid", "norm", "expand")


def declared(config: Mapping[str, Any] | None) -> tuple[Search, ...]:
    """The range searches that a compressed-tensors config names for its weights, in order, each once.

    What is no observer of llm-compressor's, or has settings that none can have, is passed over.
    """
    found: dict[Search, None] = {}
    for weights in _weights(config):
        known = _OBSERVERS.get(str(weights.get("observer")))
        kwargs = weights.get("observer_kwargs")
        if known is None:
            continue
        given = kwargs if isinstance(kwargs, dict) else {}
        values = {key: given.get(key, getattr(known, key)) for key in _SETTINGS}
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e6 for v in values.values()):
            continue
        try:
            found[Search(**{**values, "patience": int(values["patience"])})] = None
        except NumericError:
            continue
    return tuple(found)


def _weights(config: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    quantised = (config or {}).get("quantization_config")
    groups = quantised.get("config_groups") if isinstance(quantised, dict) else None
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights
