"""The table of a requantisation, at every width, and cut where a terminal would scroll."""

from __future__ import annotations

from pathlib import Path

import pytest

from auditor.checkpoint import open_checkpoint
from repair.make import recipefile
from repair.make.requantise import plan
from repair.make.requantise_row import kinds, total_of
from reports import requantizetext as text
from reports.layout import cells, plain
from tests.repair.make.requantising import requantise
from tests.repair.make.unquantised import source

RECIPE = "nvfp4_mlp_only_mse-fp8_cast_kv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("text")
    wanted, found = requantise(source("deepseek").write(folder / "src"), folder / "new", recipefile.load(RECIPE))
    found.folder = Path("new")  # a path has no place to be folded at
    return wanted, found


@pytest.mark.parametrize("width", [40, 60, 80, 109, 110, 200])
def test_lines_fit_the_terminal(made, width: int) -> None:
    wanted, found = made
    rows, total = kinds(found.rows), total_of(found.rows)
    for lines in (
        text.planned(wanted, width, None), text.done(wanted, found, rows, total, width, None),
        text.recipes(recipefile.shipped(), width),
    ):  # fmt: skip
        assert max(cells(plain(line)) for line in lines) <= width


def test_every_figure_is_there_whatever_the_width(made) -> None:
    wanted, found = made
    rows, total = kinds(found.rows), total_of(found.rows)
    parts = [f"{part}{leaf}_proj" for part in ("experts.*.", "shared_experts.") for leaf in ("gate", "up", "down")]
    assert {kind.name for kind in rows} == {f"model.layers.*.mlp.{part}" for part in parts}
    for width in (60, 200):
        shown = [plain(line) for line in text.done(wanted, found, rows, total, width, None)]
        for kind in rows:
            told = " ".join(" ".join(shown).split())
            for figure in (f"{kind.errors.sqnr:.2f}", f"{kind.errors.mse:.3g}"):
                assert figure in told


def test_long_tables_are_cut_on_a_terminal(made) -> None:
    wanted, _ = made
    shown = [plain(line) for line in text.planned(wanted, 120, 2)]
    assert shown[3] == "... and 4 more kinds (--format json lists all)"
    assert any("more kinds" in line for line in shown[4:])
    assert not any("more kind" in plain(line) for line in text.planned(wanted, None, None))


def test_a_plan_says_what_it_holds(made) -> None:
    wanted, _ = made
    again = plan(open_checkpoint(wanted.checkpoint.root), wanted.recipe)
    assert [kind.modules for kind in again.kinds] == [6, 6, 6, 2, 2, 2]
    assert again.total.modules == 24
    assert again.total.bytes_in == 2 * sum(weight.elements for weight in again.found.weights)
