from __future__ import annotations

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from markdown_it import MarkdownIt

from reports import escape
from tests.reports.audits import NASTY

HOSTILE = "a\x1b[31mred\x07\u202egnp.exe\u200b\ud800\x85\u2028b"


def test_what_draws_nothing_is_named():
    assert escape.visible(HOSTILE) == r"a\x1b[31mred\x07\u202egnp.exe\u200b\ud800\x85\u2028b"
    assert escape.visible("a\u0301\u3164") == r"a\u0301\u3164"
    assert escape.visible("\U000e0041") == r"\U000e0041"
    assert escape.visible("model.layers.0.é漢 [x]") == "model.layers.0.é漢 [x]"


@given(NASTY)
def test_visible_text_is_one_printable_line(text):
    shown = escape.visible(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Mn", "Me"} for c in shown)
    assert not any(unicodedata.bidirectional(c) in {"LRO", "RLO", "LRE", "RLE", "PDF", "LRI", "RLI"} for c in shown)
    assert escape.visible(shown) == shown


@given(NASTY)
def test_text_that_is_safe_stays(text):
    if text.isascii() and text.isprintable():
        assert escape.visible(text) == text


def test_a_long_name_keeps_both_ends():
    name = "model.layers.7." + "x" * 500 + ".down_proj.weight_scale"
    shown = escape.short(name, 80)
    assert len(shown) == 80
    assert shown.startswith("model.layers.7.")
    assert shown.endswith(".down_proj.weight_scale")
    assert escape.short(name, 1000) == name


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1"])
def test_a_formula_is_text_to_a_spreadsheet(text):
    assert escape.cell(text) == "'" + text


@given(NASTY)
def test_a_csv_field_starts_no_formula_and_comes_back(text):
    cell = escape.cell(text)
    assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([cell, "end"])
    assert next(csv.reader(io.StringIO(out.getvalue()))) == [cell, "end"]
    assert cell.removeprefix("'") == escape.visible(text).removeprefix("'")


def rendered_cells(*cells: str) -> list[str]:
    """The text of the cells of one table row, as a Markdown reader shows them."""
    table = "| a | b |\n| --- | --- |\n| " + " | ".join(cells) + " |\n"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(table)
    found = []
    for at, token in enumerate(tokens):
        if token.type == "td_open":
            children = tokens[at + 1].children or []
            assert {c.type for c in children} <= {"text", "code_inline", "html_inline", "text_special"}, cells
            assert all(c.content in {"<code>", "</code>"} for c in children if c.type == "html_inline")
            found.append("".join(c.content for c in children if c.type != "html_inline"))
    return found


@given(NASTY)
def test_markdown_shows_the_text_and_nothing_else(text):
    shown = escape.visible(text)
    name, prose = rendered_cells(escape.code(text), escape.markdown(text))
    assert name.replace("\xa0", " ").strip() == shown.strip()
    assert prose.replace("\xa0", " ").strip() == shown.strip()


@given(NASTY)
def test_a_workflow_command_stays_one_line_and_one_property(text):
    value = escape.workflow_value(text)
    assert not set(":,\r\n") & set(value)
    assert "\n" not in escape.workflow(text)
    back = value.replace("%3A", ":").replace("%2C", ",").replace("%25", "%")
    assert back == escape.visible(text)
