"""Every layout by every defect: repaired, scanned again, repaired again, taken back."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from auditor.audit import Depth
from repair.apply import undo
from tests.damages.table import DAMAGES
from tests.forge import make
from tests.layouts import LAYOUTS
from tests.repair.mending import contents, expect_only_planned, mend, planned, serious

FEW = settings(
    max_examples=2,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
DAMAGED = [(layout, name) for layout, name in itertools.product(LAYOUTS, DAMAGES) if DAMAGES[name].fits(make(layout))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_healthy_checkpoint_is_left_alone(layout: str, tmp_path: Path) -> None:
    _, built, plan = planned(make(layout).write(tmp_path))
    assert not plan.touched
    assert not built.repairs


@pytest.mark.parametrize(("layout", "name"), DAMAGED)
def test_repair_scan_repair_undo(layout: str, name: str) -> None:
    damage = DAMAGES[name]

    @FEW
    @given(st.data(), st.sampled_from((1, 2)))
    def check(data: st.DataObject, shards: int) -> None:
        model = make(layout).copy()

        def pick(options):  # type: ignore[no-untyped-def]
            return options[0] if len(options) == 1 else data.draw(st.sampled_from(options))

        damage.do(model, pick(damage.fits(model)), pick)
        with TemporaryDirectory() as folder:
            root = Path(folder)
            model.write(root, shards)
            mended = mend(root)
            before, after = serious(mended.before), serious(mended.after)
            told = mended.repaired() | mended.remaining()
            assert before <= told, "a finding without a word"
            assert not (mended.repaired() - mended.remaining()) & after, "repaired and still there"
            assert not after - before, "new findings"
            expect_only_planned(mended, root)
            assert not planned(root)[2].touched, "the second repair has something to do"
            if mended.plan.touched:
                undo(root)
            assert contents(root) == mended.files

    check()


def test_depths_agree_where_they_overlap(tmp_path: Path) -> None:
    root = make("modelopt-nvfp4").write(tmp_path)
    for depth in Depth:
        assert not planned(root, depth=depth)[2].touched
