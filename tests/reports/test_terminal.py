from __future__ import annotations

import io
import re

from hypothesis import given

from reports import text
from reports.layout import Span, plain
from reports.terminal import STYLES, print_lines
from tests.reports.audits import AUDITS, FULL, NASTY, seen

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def printed(lines) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print_lines(lines, out)
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]


@given(NASTY)
def test_markup_in_a_name_is_text(name):
    from reports.escape import visible

    shown = visible(name).rstrip()
    assert _COLOR.sub("", printed([(Span(shown, "name"),)])) == shown + "\n"
    assert "[bold red]x[/]" in printed([(Span("[bold red]x[/]", "error"),)])


@given(AUDITS)
def test_colours_change_no_text(audit):
    lines = list(text.table([seen(audit)], 100))
    bare = _COLOR.sub("", printed(lines))
    assert bare == "".join(plain(line) + "\n" for line in lines)
    assert "\x1b" not in bare


def test_severities_differ_in_colour():
    shown = printed(list(text.table([seen(FULL)], 120)))
    assert "\x1b[1;31merror" in shown
    assert "\x1b[33mwarning" in shown
    assert "\x1b[36minfo" in shown
    assert {"error", "warning", "info"} <= set(STYLES)
