"""FMT102."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.formats.base import all_formats
from auditor.formats.swapped import MARKERS
from auditor.layer import CODE_DTYPES, is_weight_scale, split
from auditor.rule import CheckpointRule
from auditor.tensorref import TensorRef

_FEW, _MANY = 64, 1000  # leaves of a module: beyond, looking at all of them for each would never end
_NONE = "no known layout has such a tensor"


class UnexplainedTensor(CheckpointRule):
    """A tensor looks quantised, and no known layout explains it.

    ## What it checks
    Tensors of 8 bits and less (U8, I8, FP8, FP4) that belong to no recognised layer, FP8 weights without any
    scale apart (FMT103).  The message names the layout that comes closest, one that is used here before others, and
    what it lacks.  An error where the configuration declares the module quantised in a way that is audited, or where
    the closest layout is used here: then a part is missing.  Modules with a tensor whose entry cannot be read are
    left to FIL103.

    ## Why it matters
    Its scale is missing, misnamed or of a dtype that no server reads there: the layer loads with garbage or
    not at all.  What no rule can look at must not pass for sound.

    ## What engines do
    Missing parts: an error by name, or uninitialised memory.  Unknown parts: ignored.

    ## Fix
    None is proposed.

    ## References
    The layouts in docs/formats.md
    """

    code, title, severity = "FMT102", "quantised tensor of no known layout", Severity.WARNING
    needs, whole = Depth.HEADERS, True

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per tensor."""
        if not ctx.recognised.unclaimed:
            return
        modules: dict[str, dict[str, TensorRef]] = {}
        for ref in ctx.checkpoint.tensors.values():
            module, leaf = split(ref.name)
            modules.setdefault(module, {})[leaf] = ref
        unread = unread_modules(ctx)
        used = frozenset(layer.format.name for layer in ctx.layers)
        scaled: dict[str, bool] = {}  # once per module: one without dots in its names may hold every tensor
        for ref in ctx.recognised.unclaimed:
            module, leaf = split(ref.name)
            if ref.dtype not in CODE_DTYPES or leaf.endswith(("scale", "scale_2", "scale_inv", "scales")):
                continue  # scales without a weight: FMT104
            if module not in scaled:
                scaled[module] = _has_scale(modules[module])
            if (ref.dtype.startswith("F8_") and not scaled[module]) or MARKERS & modules[module].keys():
                continue
            if module in unread:
                continue
            shape = "x".join(map(str, ref.shape)) or "scalar"
            closest = _closest(leaf, modules[module], used)
            severity = Severity.ERROR if closest.used or ctx.declared.quantises(module) else None
            yield self.finding(ref, f"{ref.dtype} {shape}: {closest.words}", layer=module, severity=severity)


class _Closest(NamedTuple):
    words: str
    used: bool  # by other layers of the checkpoint


def unread_modules(ctx: Context) -> set[str]:
    """Modules of which a tensor's header entry cannot be read."""
    return {split(name)[0] for shard in ctx.checkpoint.shards.values() for name in shard.header.unreadable}


def _has_scale(leaves: dict[str, TensorRef]) -> bool:
    return any(is_weight_scale(leaf) or leaf == "SCB" for leaf in leaves)


def _closest(leaf: str, leaves: dict[str, TensorRef], used: frozenset[str]) -> _Closest:
    """What the nearest layout would need."""
    if len(leaves) <= _FEW:
        return _memoised(leaf, tuple((name, ref.dtype) for name, ref in leaves.items()), used)
    if len(leaves) >= _MANY:
        return _Closest(_NONE, False)
    return _nearest(leaf, {name: ref.dtype for name, ref in leaves.items()}, used)


@lru_cache(4096)  # modules are many, kinds of module few
def _memoised(leaf: str, dtypes: tuple[tuple[str, str], ...], used: frozenset[str]) -> _Closest:
    return _nearest(leaf, dict(dtypes), used)


def _nearest(leaf: str, dtypes: dict[str, str], used: frozenset[str]) -> _Closest:
    """The layout that lacks least of those that are used here, else of all; and, among those, has most."""
    best: tuple[bool, int, int, str] = (True, 99, 0, _NONE)
    for fmt in all_formats():
        suffix = next(iter(fmt.parts.values())).suffix
        if not leaf.endswith(suffix) or (not fmt.stemmed and leaf != suffix) or fmt.unaudited:
            continue
        stem = leaf[: len(leaf) - len(suffix)]
        required = [part for part in fmt.parts.values() if part.required]
        lacks = [
            f"{stem}{part.suffix} ({'/'.join(sorted(part.dtypes))})"
            for part in required
            if dtypes.get(stem + part.suffix, "") not in part.dtypes
        ]
        if lacks and len(lacks) < len(required):
            words = f"{fmt.name} would need {', '.join(lacks)}"
            best = min(best, (fmt.name not in used, len(lacks), -len(required), words))
    return _Closest(best[3], not best[0])
