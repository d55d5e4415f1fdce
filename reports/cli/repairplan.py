"""Plans as `audit repair` carries them out; those that were made elsewhere (--apply) among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.finding import Safety
from quant.errors import RepairError, UsageError
from reports.cli.guard import say
from reports.escape import typed
from reports.quantity import plural, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditor.context import Context
    from auditor.finding import Finding
    from repair.apply import Proof
    from repair.build import Built
    from repair.fixes.desk import Options
    from repair.patch import Plan


def folder_of(checkpoint: str) -> Path:
    """The folder that a checkpoint's journals lie in: its own, or that of the file that was named."""
    path = Path(checkpoint)
    return path.parent if path.is_file() else path


def settle(root: Path) -> None:
    """Settle what an interrupted repair left, and say so.  RepairError when it cannot be."""
    from repair.apply import Done, hot, recover

    if hot(root) is not None and (outcome := recover(root)).done is not Done.UNCHANGED:
        say(outcome.message)


def carry_out(root: Path, plan: Plan, proof: Proof) -> tuple[str, str]:
    """Carry a plan out in place, once all is settled; the entry's number and what was proven."""
    from repair.apply import apply

    with undoable(root):
        outcome = apply(root, plan, proof)
    return str(outcome.entry or ""), outcome.proof


@contextmanager
def undoable(root: Path) -> Iterator[None]:
    """An error that leaves an unfinished repair names the command that settles it."""
    from repair.refusals import UnfinishedError

    try:
        yield
    except UnfinishedError as error:
        raise RepairError(f"{error}; next: audit undo {typed(str(root))}") from error


def copy(root: Path, built: Built, plan: Plan, out: Path, *, link: bool = False) -> str:
    """Carry a plan out in a copy; how its files came there."""
    from repair.build import rewrites
    from repair.outofplace import repaired_copy
    from repair.walking import Why

    done = repaired_copy(root, plan, out, rewrites(built), link)
    kinds = {"patched": done.patched, "rewritten": done.rewritten, "cloned": done.cloned, "linked": done.linked,
             "copied": done.copied}  # fmt: skip
    ways = ", ".join(f"{plural(len(names), 'file')} {kind}" for kind, names in kinds.items() if names)
    passed = "".join(f"; left out: {name}" for name in done.left_out if name.why is not Why.APART)
    return f"{ways}; the original is untouched{passed}"


def expect_alone(file: Path, *others: object) -> None:
    """UsageError when there is no plan to take, or when an option that makes one stands beside --apply."""
    if any(other is not None for other in others):
        raise UsageError("--apply takes a plan as it is: --out, --plan and --source have no place beside it")
    if not file.is_file():
        raise UsageError(f"{file}: no such plan")


def taken(file: Path, ctx: Context, findings: Sequence[Finding], options: Options) -> tuple[Built, Plan]:
    """A plan from elsewhere as if it had been made here, so that it is shown and carried out the same way.

    It is held against the files, nothing in it is believed; when all its new bytes are there already it is empty.
    """
    from repair import planfile
    from repair.build import Built, Repair
    from repair.fixes.desk import Desk
    from repair.fixes.proposal import Left
    from repair.patch import Plan
    from repair.recheck import recheck

    plan = planfile.load(file)
    if plan.touched and not recheck(ctx.checkpoint.root, plan):
        say(f"{file}: all its new bytes are there already")
        plan = Plan(skipped=plan.skipped)
    places: dict[tuple[str, str, Safety, str], list[int]] = {}
    for patch in plan.patches:
        places.setdefault((patch.rule, patch.tensor, patch.safety, patch.reason), []).append(patch.length)
    for text in plan.texts:
        places.setdefault((text.rule, text.file, text.safety, text.reason), []).append(len(text.new or b""))
    risk = max((safety for *_, safety, _ in places if safety is not Safety.RESTORED), default=Safety.EXACT)
    built = Built(Desk(ctx, options._replace(risk=risk), tuple(findings)))
    built.repairs += [
        Repair(rule, tensor, safety, reason, len(sizes), size(sum(sizes)), (), ())
        for (rule, tensor, safety, reason), sizes in places.items()
    ]
    built.left += [Left(skipped.code, skipped.tensor, skipped.reason, 1) for skipped in plan.skipped]
    return built, plan
