"""Over random checkpoints and random plans: undo gives every file back, repairing twice is repairing once."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from repair.apply import Done, apply, undo, undo_plan
from repair.patch import Patch, TextPatch, plan_for
from tests.repair.memory import ROOT, Disk, MemoryFs
from tests.repair.plans import Case, data_start


@st.composite
def plans(draw):
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    sizes = {f"{name}.safetensors": draw(st.integers(1, 5000)) for name in names}
    texts = []
    for name in draw(st.lists(st.sampled_from(["config.json", "x.json", "y.txt"]), max_size=3, unique=True)):
        contents = st.one_of(st.none(), st.binary(max_size=40))
        old, new = draw(st.tuples(contents, contents).filter(any))
        texts.append(TextPatch(name, old, new, "CFG101"))
    case = Case({}, sizes, texts)
    for name, size in sizes.items():
        cuts = sorted(draw(st.lists(st.integers(0, size), max_size=8, unique=True)))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            at = data_start(case.files[name]) + start
            old = case.files[name][at : at + end - start]
            new = random.Random(draw(st.integers(0, 9))).randbytes(len(old))
            case.patches.append(Patch(name, at, old, new, "w", "SCL101"))
    case.patches = draw(st.permutations(case.patches))
    return case


def content(disk: Disk) -> dict[str, bytes]:
    return {name: raw for name, (raw, _) in disk.files().items()}


@settings(max_examples=300, deadline=None)
@given(plans())
def test_apply_undo_redo(case):
    disk = case.disk()
    fs = MemoryFs(disk)
    plan = plan_for(ROOT, case.patches, case.texts, fs=fs)
    changes = case.after() != case.files
    assert (apply(ROOT, plan, fs=fs).done is Done.APPLIED) == changes
    assert content(disk) == case.after()
    assert apply(ROOT, plan, fs=fs).done is Done.UNCHANGED
    assert content(disk) == case.after()
    if changes:
        back = undo_plan(ROOT, fs=fs)
        assert back.touched == plan.touched
        assert back.nbytes == plan.nbytes
        undo(ROOT, fs=fs)
        assert content(disk) == case.files
        undo(ROOT, fs=fs)
        assert content(disk) == case.after()
    assert content(disk.crashed(random.Random(0), "drop")) == case.after()
