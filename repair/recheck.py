"""A plan that came from elsewhere, held against the files before it is used.  Nothing is written."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from auditor.header import parse
from quant.errors import RepairError
from repair.compare import compare
from repair.handle import Handle
from repair.osfs import REAL, Fs
from repair.patch import Patch, Plan
from repair.refusals import ChangedError, refuse_folder


def recheck(root: Path, plan: Plan, fs: Fs = REAL) -> bool:
    """True when all old bytes are there, False when all new ones are.

    Raises what `repair.apply.apply` would raise, and RepairError when a patch does not lie inside the tensor that it
    names: a plan must not say one thing and do another.
    """
    refuse_folder(fs, root)
    for name, patches in groupby(plan.patches, key=lambda patch: patch.file):
        if fs.status(root / name) is None:
            raise ChangedError(f"{name}: is not there any more")
        with Handle.reading(fs, root / name) as file:
            size = file.status().size
            raw = file.read(0, min(plan.files[name].data_start, size))
            header = parse(raw, name, size)
            spans = {ref.name: (ref.start, ref.start + ref.nbytes) for ref in header.tensors}
            for patch in patches:
                _expect_inside(patch, spans.get(patch.tensor))
    return not compare(fs, root, plan).old


def _expect_inside(patch: Patch, span: tuple[int, int] | None) -> None:
    where = f"{patch.file}: {patch.tensor[:200]}"
    if span is None:
        raise RepairError(f"{where}: no such tensor in the file")
    if not span[0] <= patch.offset or patch.end > span[1]:
        raise RepairError(f"{where}: bytes {patch.offset}..{patch.end} lie outside the tensor ({span[0]}..{span[1]})")
