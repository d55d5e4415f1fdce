"""Every layout by every defect: silent on the healthy, exactly the right word on the damaged, patience with the odd."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from auditor.audit import Depth
from auditor.finding import PLACES_KEPT
from auditor.rule import all_rules
from tests.audits import audited, bad, flats
from tests.damages.table import DAMAGES, ODDITIES, Damage, Done
from tests.forge import Model, make
from tests.layouts import LAYOUTS

FEW = settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
HEADERS_TELL = {rule.code for rule in all_rules() if rule.needs is Depth.HEADERS}
DAMAGED = [(layout, name) for layout, name in itertools.product(LAYOUTS, DAMAGES) if DAMAGES[name].fits(make(layout))]
ODD = [(layout, name) for layout, name in itertools.product(LAYOUTS, ODDITIES) if ODDITIES[name].fits(make(layout))]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_healthy_is_silent(layout: str, depth: Depth, shards: int, tmp_path: Path) -> None:
    audit = audited(make(layout).write(tmp_path, shards), depth)
    assert not bad(audit)
    assert set(audit.formats) == set(LAYOUTS[layout].labels)
    assert audit.tensor_count == len(make(layout).tensors)
    unaudited = layout.startswith("int-")
    assert {s.tensor for s in audit.skipped} == ({x.codes for x in make(layout).layers} if unaudited else set())


def changed(layout: str, damage: Damage, data: st.DataObject) -> tuple[Model, Done]:
    """A copy of the healthy checkpoint, damaged in a place that hypothesis draws."""
    model = make(layout).copy()

    def pick(options):  # type: ignore[no-untyped-def]
        return options[0] if len(options) == 1 else data.draw(st.sampled_from(options))

    return model, damage.do(model, pick(damage.fits(model)), pick)


@pytest.mark.parametrize(("layout", "name"), DAMAGED)
def test_damage_is_named_exactly(layout: str, name: str) -> None:
    damage = DAMAGES[name]

    @settings(FEW, max_examples=2 if damage.depth is Depth.HEADERS else 3)
    @given(st.data(), st.sampled_from((1, 2)))
    def check(data: st.DataObject, shards: int) -> None:
        model, done = changed(layout, damage, data)
        with TemporaryDirectory() as root:
            model.write(Path(root), shards)
            audit = audited(Path(root), damage.depth)
            anywhere = [code for code, tensor in done.expected if tensor == "*"]
            assert bad(audit, anywhere) == done.expected
            for finding in audit.findings:
                wanted = done.places.get((finding.code, finding.tensor))
                if wanted is not None:
                    shape = model.tensors[finding.tensor].shape
                    assert flats(finding, shape) == wanted[:PLACES_KEPT]
            if damage.depth > Depth.HEADERS:
                # What `Known.silent` builds on: no byte that headers do not show makes these rules begin to speak.
                spoke, deep = ({f.code for f in a.findings} for a in (audited(Path(root), Depth.HEADERS), audit))
                assert not HEADERS_TELL & (deep - spoke)
                assert bad(audited(Path(root), Depth(damage.depth - 1)), anywhere) < done.expected
            if damage.depth < Depth.FULL:
                assert bad(audited(Path(root), Depth.FULL), anywhere) == done.expected

    check()


@pytest.mark.parametrize(("layout", "name"), ODD)
def test_oddity_is_at_most_information(layout: str, name: str) -> None:
    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model, _ = changed(layout, ODDITIES[name], data)
        with TemporaryDirectory() as root:
            model.write(Path(root))
            for depth in (Depth.SCALARS, Depth.SCALES, Depth.FULL):
                assert not bad(audited(Path(root), depth))

    check()


def test_every_damage_and_every_oddity_occurs_somewhere() -> None:
    assert {name for _, name in DAMAGED} == set(DAMAGES)
    assert {name for _, name in ODD} == set(ODDITIES)
