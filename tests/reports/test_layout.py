from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reports.layout import cells, fold, fold_name

NAME = "model.language_model.layers.12.mlp.experts.127.gate_up_proj_weight_scale"


def test_a_name_breaks_at_its_dots():
    assert fold_name(NAME, 50) == ["model.language_model.layers.12.mlp.experts.127", ".gate_up_proj_weight_scale"]
    assert fold_name(NAME, None) == [NAME]
    assert fold_name(NAME, 72) == [NAME]


def test_a_part_wider_than_a_line_breaks_at_underscores():
    assert fold_name("gate_up_proj_weight_scale", 14) == ["gate_up_proj_", "weight_scale"]


@given(st.text("abc0._/漢", max_size=60), st.integers(8, 40))
def test_a_folded_name_loses_nothing_and_fits(name, width):
    parts = fold_name(name, width)
    assert "".join(parts) == name
    assert all(cells(part) <= width for part in parts)


@given(st.text("ab .漢", max_size=80), st.integers(8, 40))
def test_folded_prose_keeps_its_words_and_fits(text, width):
    parts = fold(text, width)
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert all(cells(part) <= width for part in parts) or cells(text) <= width


def test_a_wide_character_takes_two_columns():
    assert cells("漢a") == 3
    assert fold_name("漢漢漢", 4) == ["漢漢", "漢"]


def test_prose_breaks_between_words():
    assert fold("the codes under them are lost", 12) == ["the codes", "under them", "are lost"]
