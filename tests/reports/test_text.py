from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.audit import Audit, Depth
from auditor.finding import Severity
from reports import text
from reports.escape import visible
from reports.layout import Line, cells, plain
from reports.report import unreadable
from tests.reports.audits import AUDITS, CLEAN, EXPERT, FAULTY, FULL, LOOK, NAN, seen

GOLDEN = Path(__file__).parent / "golden"


def written(lines: list[Line]) -> str:
    return "".join(plain(line) + "\n" for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 200, None])
def test_the_table_looks_as_agreed(width):
    shown = written(list(text.table([seen(FULL)], width)))
    assert shown == (GOLDEN / f"table-{width or 'pipe'}.txt").read_text("utf-8")


def test_the_full_report_looks_as_agreed():
    audit = replace(FULL, findings=tuple(f._replace(code="XYZ" + f.code) for f in FULL.findings))  # no rule's page
    shown = written(list(text.full([seen(audit)], 90)))
    assert shown == (GOLDEN / "full-90.txt").read_text("utf-8")


def test_a_pipe_gets_one_line_a_finding():
    lines = written(list(text.table([seen(FULL)]))).splitlines()
    assert sum(line.startswith(("error ", "warning ", "info ")) for line in lines) == len(FULL.findings)
    found = next(line for line in lines if "SCL101" in line)
    assert found.startswith("error ")
    assert NAN.tensor in found
    assert NAN.message in found


@given(AUDITS, st.sampled_from([40, 60, 99, 100, 130]))
def test_no_line_is_wider_than_the_terminal_or_holds_a_control_character(audit, width):
    for make in (text.table, text.full):
        for line in make([seen(audit)], width):
            shown = plain(line)
            assert shown.isprintable()
            assert cells(shown) <= width


@given(AUDITS)
def test_every_name_is_in_the_table_whole(audit: Audit):
    piped = written(list(text.table([seen(audit)])))
    for finding in audit.findings:
        assert visible(finding.tensor).rstrip() in piped
        assert visible(finding.message).rstrip() in piped


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_layer_and_projection_survive_any_width(width):
    tensor = "model.language_model.layers.12.mlp.experts.127.gate_up_proj_weight_scale"
    audit = replace(FULL, findings=(NAN._replace(tensor=tensor),))
    rows = written(list(text.table([seen(audit)], width)))
    squeezed = re.sub(r"\s+", "", rows)
    for part in (".layers.12.", ".experts.127", "gate_up_proj"):
        assert part in squeezed


def test_many_findings_of_a_rule_are_counted_not_listed():
    many = tuple(NAN._replace(tensor=f"layer.{i}") for i in range(70))
    shown = written(list(text.table([seen(replace(FULL, findings=(*many, LOOK)))], 80, limit=50)))
    assert "layer.49\n" in shown
    assert "layer.50\n" not in shown
    assert "... and 20 more SCL101" in shown
    assert "config.json" in shown
    assert "layer.69" in written(list(text.table([seen(replace(FULL, findings=many))])))


def test_the_footer_says_what_is_fixable_read_and_skipped():
    shown = written(list(text.footer(seen(FULL), None)))
    assert "2 errors, 1 warning, 1 info\n" in shown
    assert "[*] 1 of 4 fixable exactly, 1 more with --risk bounded, 1 more with --risk guess\n" in shown
    assert "84.3 MB of 1.01 GB read (8.3 %), depth scales" in shown
    assert (
        "2 tensors: an integer format (INT4 or INT8) is not audited (first: model.layers.0.mlp.up_proj.qweight)"
        in shown
    )
    assert "model-00003-of-00003.safetensors: permission denied" in shown
    assert "512 tensors: not read at depth scales" in shown


def test_nothing_is_called_clean_that_was_not_checked():
    assert "No findings.\n" in written(list(text.footer(seen(CLEAN), None)))
    partly = written(list(text.footer(seen(replace(CLEAN, skipped=FULL.skipped)), None)))
    assert "No findings in what was checked.\n" in partly
    faulty = written(list(text.footer(seen(replace(FAULTY, findings=())), None)))
    assert "No findings in what was checked.\n" in faulty
    assert f"SCL101 at {EXPERT}: KeyError: 'weight'" in faulty
    gone = written(list(text.footer(unreadable("x", "x: no such file or folder", Depth.SCALES), None)))
    assert "Nothing could be read.\n" in gone
    assert "x: no such file or folder" in gone


def test_the_footer_counts_what_is_hidden():
    report = seen(FULL, least=Severity.ERROR, known=lambda f: f.code == "SCL101", ignored=lambda f: f.code == "GLB102")
    shown = written(list(text.footer(report, None)))
    assert "1 warning, 1 info (2 below --min-severity, 1 known from the baseline, 1 ignored" in shown


def test_names_come_once_and_alone():
    audit = replace(FULL, findings=(NAN, NAN._replace(code="SCL102"), LOOK))
    assert written(list(text.names([seen(audit)]))) == f"{NAN.tensor}\nconfig.json\n"
    both = written(list(text.names([seen(audit), seen(CLEAN)])))
    assert both == f"models/demo-NVFP4: {NAN.tensor}\nmodels/demo-NVFP4: config.json\n"
