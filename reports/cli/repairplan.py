"""`audit repair --apply`: carry out a plan that was made elsewhere."""

from __future__ import annotations

from pathlib import Path

from quant.errors import UsageError
from reports.cli.guard import say
from reports.report import Exit


def settle(root: Path) -> None:
    """Settle what an interrupted repair left, and say so; RepairError when it cannot be."""
    from repair.apply import Done, hot, recover

    if hot(root) is not None:
        outcome = recover(root)
        if outcome.done is not Done.UNCHANGED:
            say(outcome.message)


def apply_file(checkpoint: str, file: Path, proof: str, *, write: bool, color: bool | None) -> int:
    """Compare a plan with the files, show it, and with ``write`` carry it out; nothing in it is believed."""
    from repair import planfile
    from repair.apply import Proof, apply
    from reports import repairtext
    from reports.cli.printing import print_text
    from reports.layout import Span

    root = Path(checkpoint)
    root = root.parent if root.is_file() else root
    if not root.is_dir():
        raise UsageError(f"{checkpoint}: no such file or folder")
    if not file.is_file():
        raise UsageError(f"{file}: no such plan")
    plan = planfile.load(file)
    print_text(repairtext.listed(plan, repairtext.SHOWN), color)
    if not write:
        print_text(repairtext.unwritten(None), color)
        return Exit.FINDINGS if plan.touched else Exit.CLEAN
    settle(root)
    outcome = apply(root, plan, Proof(proof))
    print_text([(Span(f"{outcome.message}; {outcome.proof}" if outcome.proof else outcome.message),)], color)
    return Exit.CLEAN
