"""Run rules over a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.audit import Audit, Depth, InternalError
from auditor.checkpoint import Checkpoint, open_checkpoint
from auditor.context import Context
from auditor.declared import read_declared
from auditor.finding import Finding, Skipped
from auditor.formats.base import SCALE_ROLES, Role
from auditor.groups import FusedSet
from auditor.known import Known, stamp
from auditor.layer import QuantizedLayer, Recognised, recognise
from auditor.measure import Measured, Progress, Task, run
from auditor.probes import CHUNK, Probe
from auditor.rows import Rows, layer_rows, tensor_rows
from auditor.rule import CheckpointRule, GroupRule, LayerRule, Rule, all_rules
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.codes import E8M0
from quant.errors import CheckpointError, ToolError

if TYPE_CHECKING:
    from concurrent.futures import Executor

_SMALL = 64 << 10  # bytes up to which a float scale counts as a scalar (one number per expert, say)


def scan(
    path: str | Path,
    *,
    depth: Depth = Depth.SCALES,
    rules: Iterable[Rule] | None = None,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit a folder, a shard or what an index names.

    ``rules`` (default: all) are run at ``depth``; ``executor`` may be any concurrent.futures.Executor, else
    ``jobs`` threads read.  ``progress(bytes done, bytes in all)`` is called from this thread.
    Raises CheckpointError when there is nothing to audit; whatever else is wrong is in the result.
    """
    return examine(path, depth=depth, rules=rules, executor=executor, jobs=jobs, progress=progress)[1]


def examine(
    path: str | Path,
    *,
    depth: Depth = Depth.SCALES,
    rules: Iterable[Rule] | None = None,
    executor: Executor | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    known: Known | None = None,
) -> tuple[Context, Audit]:
    """As `scan`, with the evidence beside the result: a repair is planned from both.

    ``known``: an earlier scan by the same rules, of which everything is kept that was measured on bytes that are the
    same; where headers and other files are the same, too, rules that look at nothing else are silent as before.
    The context opens files again when it is asked for bytes: close it when done.
    """
    then = known.ctx if known is not None else None
    checkpoint = open_checkpoint(path, then.checkpoint if then else None)
    stamps = {name: found for name, shard in checkpoint.shards.items() if (found := stamp(shard.path))}
    same = then is not None and checkpoint.same_tensors(then.checkpoint)
    unchanged = then is not None and depth is then.depth and checkpoint == then.checkpoint
    recognised = then.recognised if then and same else recognise(checkpoint.tensors.values())
    todo, kept = _work(checkpoint, recognised, depth), Measured()
    if known is not None and known.ctx.depth is depth:
        before = known.ctx.recognised
        todo, kept = known.keep(todo, checkpoint, None if same else lambda ref: plan_task(ref, before, depth))
    measured = run(todo, executor, jobs, progress)
    measured.stats.update(kept.stats)
    ctx = Context(checkpoint, recognised, read_declared(checkpoint), depth, measured, stamps=stamps)
    if then is not None:
        ctx.recall(then, kept.stats)
    findings: list[Finding] = []
    errors: list[InternalError] = []
    unreadable: dict[str, str] = {}
    try:
        for rule in all_rules() if rules is None else rules:
            if known is not None and unchanged and known.silent(rule):
                continue
            if rule.needs <= depth and (checkpoint.whole or not rule.whole):
                findings.extend(_run_rule(rule, ctx, errors, unreadable))
    finally:
        ctx.close()
    findings.sort(key=lambda f: (-f.severity, f.code, f.shard if f.tensor == f.shard else "", _natural(f.tensor)))
    return ctx, _audit(ctx, findings, errors, unreadable)


def _run_rule(rule: Rule, ctx: Context, errors: list[InternalError], unreadable: dict[str, str]) -> list[Finding]:
    """A rule's findings.  A rule that raises is a fault of this tool: noted, and the others go on."""
    found: list[Finding] = []
    look, seen = _looks(rule, ctx)
    for one in seen:
        try:
            found += list(look(one, ctx))  # none of a call that fails
        except CheckpointError as error:  # the file changed or could not be read while the rule looked
            unreadable[_names(one, ctx)[1]] = str(error)
        except MemoryError as error:
            errors.append(InternalError(rule.code, _names(one, ctx)[0], f"MemoryError: {error}"))
        except Exception as error:  # any fault of a rule, named and reported with exit code 3
            errors.append(InternalError(rule.code, _names(one, ctx)[0], f"{type(error).__name__}: {error}"))
    return found


def _looks(rule: Rule, ctx: Context) -> tuple[Callable[[Any, Context], Iterable[Finding]], Sequence[Any]]:
    """How a rule looks, and at what, one after another."""
    if isinstance(rule, LayerRule):
        return rule.check, [layer for layer in ctx.layers if rule.applies(layer)]
    if isinstance(rule, GroupRule):
        return rule.check, ctx.groups
    if isinstance(rule, CheckpointRule):
        return (lambda _, ctx: rule.check(ctx)), (None,)
    return (lambda _, ctx: ()), ()


def _names(one: QuantizedLayer | FusedSet | None, ctx: Context) -> tuple[str, str]:
    """What a rule looked at, and a tensor of it."""
    if isinstance(one, QuantizedLayer):
        return one.name, one.codes.name
    if isinstance(one, FusedSet):
        return one.parent, one.members[0].codes.name
    return "the checkpoint", ctx.checkpoint.name


def _work(checkpoint: Checkpoint, recognised: Recognised, depth: Depth) -> dict[Path, list[Task]]:
    """What this depth reads, by file."""
    work: dict[Path, list[Task]] = {}
    if depth is Depth.HEADERS:
        return work
    for ref in _refs(recognised):
        task = plan_task(ref, recognised, depth)
        if task is not None:
            work.setdefault(checkpoint.shards[ref.shard].path, []).append(task)
    return work


def _refs(recognised: Recognised) -> Iterator[TensorRef]:
    for layer in recognised.layers:
        yield from layer.parts.values()
    yield from recognised.kv
    yield from recognised.unclaimed
    yield from recognised.plain
    yield from (ref for ref, _ in recognised.ambiguous)


def plan_task(ref: TensorRef, recognised: Recognised, depth: Depth) -> Task | None:
    """How one tensor is measured at a depth, None when it is left alone."""
    layer, role = recognised.roles.get(ref.name, (None, None))
    is_float = ref.dtype in FLOAT_DTYPES
    if role in SCALE_ROLES or (layer is None and _kv_like(ref)):
        small = ref.nbytes <= _SMALL and (is_float or ref.is_scalar)
        if depth < Depth.SCALES and not small:
            return None
        probe = Probe.FLOATS if is_float else _scale_probe(ref, layer, role)
        return Task(ref.name, ref.dtype, ref.start, ref.nbytes, 0, probe) if probe else None
    if depth is not Depth.FULL:
        return None
    task = Task(ref.name, ref.dtype, ref.start, ref.nbytes, 0, Probe.FINITE)
    if is_float:
        return task
    if ref.dtype == "F8_E4M3":
        return task._replace(probe=Probe.E4M3_CODES)
    if ref.dtype == "F8_E5M2":
        return task._replace(probe=Probe.E5M2_CODES)
    if layer is not None and role is Role.CODES and layer.format.is_fp4():
        geometry = layer.geometry()
        task = task._replace(probe=Probe.FP4_CODES)
        if geometry is not None and geometry.unit * geometry.inner <= CHUNK:
            task = task._replace(unit=geometry.unit, inner=geometry.inner)
        return task
    return None


def _kv_like(ref: TensorRef) -> bool:
    return ref.name.rpartition(".")[2].endswith(("scale", "scale_2", "scale_inv", "k_bias", "v_bias"))


def _scale_probe(ref: TensorRef, layer: QuantizedLayer | None, role: Role | None) -> Probe | None:
    if layer is not None and role is Role.SCALES and layer.format.scale is E8M0:
        return Probe.E8M0_SCALES
    return {"F8_E4M3": Probe.E4M3_SCALES, "F8_E8M0": Probe.E8M0_SCALES, "U8": Probe.E8M0_SCALES}.get(ref.dtype)


def _audit(ctx: Context, findings: list[Finding], errors: list[InternalError], unreadable: dict[str, str]) -> Audit:
    checkpoint, recognised = ctx.checkpoint, ctx.recognised
    skipped = _skipped(ctx, unreadable)
    usable, stats = checkpoint.tensors.keys(), ctx.measured.stats
    broken = {name for shard in checkpoint.shards.values() for name in shard.header.unreadable} - usable
    unchecked = {s.tensor for s in skipped if s.tensor in usable or s.tensor in broken}
    held, checked = len(usable) + len(broken), len(stats) - sum(name in stats for name in unchecked)
    unread: Counter[str] = Counter()
    if left := held - len(unchecked) - checked:
        full = ctx.depth is Depth.FULL
        unread["holds integers: no value is wrong by itself" if full else f"not read at depth {ctx.depth.label}"] = left
    return Audit(
        checkpoint=checkpoint.name,
        depth=ctx.depth,
        formats=tuple(sorted({layer.format.name_for(ctx.declared.method) for layer in recognised.layers})),
        shards=tuple(checkpoint.shards),
        bytes_held=checkpoint.bytes_held,
        bytes_read=checkpoint.bytes_read + ctx.bytes_read,
        tensor_count=held,
        checked=checked,
        findings=tuple(findings),
        skipped=tuple(skipped),
        errors=tuple(errors),
        unread=unread,
        tensors=Rows(lambda: tensor_rows(ctx)),
        layers=Rows(lambda: layer_rows(ctx)),
        declared=ctx.declared.summary,
    )


def _skipped(ctx: Context, unreadable: dict[str, str]) -> list[Skipped]:
    """Everything that could not be checked, with the reason: unreadable, or of a format that is not audited."""
    checkpoint, recognised = ctx.checkpoint, ctx.recognised
    reasons: dict[str, str] = {}
    reasons.update(checkpoint.unopened)
    for shard in checkpoint.shards.values():
        if shard.header.refused:
            reasons[shard.name] = shard.header.refused
        reasons.update(shard.header.unreadable)
    reasons.update(ctx.measured.failed)
    reasons.update(unreadable)
    for layer in recognised.layers:
        if layer.format.unaudited:
            reasons[layer.codes.name] = layer.format.unaudited
    for ref, formats in recognised.ambiguous:
        reasons[ref.name] = f"claimed by {' and '.join(formats)}"
    for ref in recognised.unclaimed:
        reasons[ref.name] = "no format claims it"
    return [Skipped(name, reason) for name, reason in sorted(reasons.items(), key=lambda item: _natural(item[0]))]


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which layer 2 comes before layer 10."""
    parts = name.split(".")
    return tuple((0, int(p), "") if p.isdecimal() and len(p) < 10 else (1, 0, p) for p in parts)


__all__ = ["CheckpointError", "ToolError", "examine", "scan"]
