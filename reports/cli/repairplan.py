"""`audit repair --apply`: carry out a plan that was made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quant.errors import UsageError
from reports.cli.guard import say
from reports.report import Exit

if TYPE_CHECKING:
    from repair.apply import Proof
    from repair.build import Built
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

    outcome = apply(root, plan, proof)
    return str(outcome.entry or ""), outcome.proof


def copy(root: Path, built: Built, plan: Plan, out: Path) -> str:
    """Carry a plan out in a copy; how its files came there."""
    from repair.build import rewrites
    from repair.outofplace import repaired_copy

    done = repaired_copy(root, plan, out, rewrites(built))
    kinds = {"patched": done.patched, "rewritten": done.rewritten, "cloned": done.cloned, "copied": done.copied}
    return (
        ", ".join(f"{len(names)} files {kind}" for kind, names in kinds.items() if names)
        + "; the original is untouched"
    )


def refuse_beside_apply(*others: object) -> None:
    """UsageError when an option that makes a plan stands beside --apply, which takes one as it is."""
    if any(other is not None for other in others):
        raise UsageError("--apply takes a plan as it is: --out, --plan and --source have no place beside it")


def apply_file(checkpoint: str, file: Path, proof: str, *, write: bool, color: bool | None) -> int:
    """Compare a plan with the files, show it, and with ``write`` carry it out; nothing in it is believed."""
    from repair import planfile
    from repair.apply import Proof, hot
    from repair.recheck import recheck
    from reports import repairtext
    from reports.cli.printing import print_text
    from reports.layout import Span

    root = folder_of(checkpoint)
    if not root.is_dir():
        raise UsageError(f"{checkpoint}: no such file or folder")
    if not file.is_file():
        raise UsageError(f"{file}: no such plan")
    plan = planfile.load(file)
    if write:
        settle(root)
    if hot(root) is None:  # else the files are half way: what is there now says nothing of the plan
        recheck(root, plan)
    print_text(repairtext.listed(plan, repairtext.SHOWN), color)
    if not write:
        print_text(repairtext.unwritten(None), color)
        return Exit.FINDINGS if plan.touched else Exit.CLEAN
    entry, proven = carry_out(root, plan, Proof(proof))  # settled above
    text = f"repaired: entry {entry}; {proven}" if entry else "nothing to repair: all new bytes are there already"
    print_text([(Span(text),)], color)
    return Exit.CLEAN
