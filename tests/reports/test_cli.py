from __future__ import annotations

import csv
import io
import json
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auditor import engine
from auditor.audit import Depth
from auditor.finding import Severity
from auditor.rule import Rule
from quant.errors import CheckpointError
from reports import rulebook
from reports.cli import app
from tests.reports.audits import CLEAN, FAULTY, FULL, LOOK, NAN, ZERO

ROOT = Path(__file__).parents[2]
runner = CliRunner()


class Stub:
    """Stands in for the engine: an audit by checkpoint, and the calls that were made."""

    def __init__(self) -> None:
        self.audits = {"full": FULL, "clean": CLEAN, "faulty": FAULTY}
        self.calls: list[tuple[str, dict]] = []

    def __call__(self, path, **options):
        self.calls.append((str(path), options))
        if path not in self.audits:
            raise CheckpointError(f"{path}: no such file or folder")
        return replace(self.audits[path], checkpoint=path)


@pytest.fixture
def stub(monkeypatch, tmp_path):
    made = Stub()
    monkeypatch.setattr(engine, "scan", made)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("AUDIT_"):
            monkeypatch.delenv(name)
    return made


@pytest.fixture
def rules(monkeypatch):
    import auditor.rule

    names = {
        "SCL101": "NaN block scale",
        "SCL102": "zero block scale",
        "GLB102": "disagreement",
        "ACT101": "zero scale",
    }
    made = tuple(
        type(c, (Rule,), {"code": c, "title": t, "severity": Severity.ERROR, "__doc__": f"{t}.\n\n## Fix\nNone."})()
        for c, t in names.items()
    )
    monkeypatch.setattr(auditor.rule, "all_rules", lambda: made)
    monkeypatch.setattr(rulebook, "all_rules", lambda: made)
    rulebook._by_code.cache_clear()
    yield made
    rulebook._by_code.cache_clear()


def audit(*words: str, **options):
    result = runner.invoke(app, list(words), **options)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["clean"], 0),
        (["full"], 1),
        (["full", "--fail-on", "never"], 0),
        (["full", "--fail-on", "never", "--strict"], 3),
        (["clean", "--strict"], 0),
        (["full", "--strict"], 3),
        (["faulty"], 3),
        (["gone"], 3),
        (["clean", "full"], 1),
        (["gone", "clean", "full"], 3),
        ([], 2),
        (["full", "--depth", "deep"], 2),
        (["full", "--jobs", "0"], 2),
        (["full", "--select", "XYZ"], 2),
        (["full", "--config", "gone.toml"], 2),
        (["full", "--baseline", "gone.json"], 2),
        (["full", "-o", "gone/report.txt"], 2),
        (["full", "--no-such-flag"], 2),
        (["full", ""], 2),
    ],
)
def test_exit_codes(stub, words, code):
    assert audit("scan", *words).exit_code == code


def test_an_info_is_clean_unless_asked_for(stub):
    stub.audits["full"] = replace(FULL, findings=(LOOK,))
    assert audit("scan", "full").exit_code == 0
    assert audit("scan", "full", "--fail-on", "info").exit_code == 1


def test_the_threshold_counts_what_is_not_listed(stub):
    stub.audits["full"] = replace(FULL, findings=(ZERO,))
    result = audit("scan", "full", "--min-severity", "error", "--fail-on", "warning")
    assert result.exit_code == 1
    assert ZERO.tensor not in result.stdout
    assert "1 below --min-severity" in result.stdout


def test_one_unreadable_checkpoint_does_not_stop_the_others(stub):
    result = audit("scan", "gone", "full", "--format", "json")
    assert result.stderr == "audit: gone: no such file or folder\n"
    documents = json.loads(result.stdout)
    assert documents[0]["summary"]["unreadable"] == "no such file or folder"
    assert documents[0]["skipped"] == [{"tensor": "gone", "reason": "no such file or folder"}]
    assert len(documents[1]["findings"]) == 4


def test_a_list_is_read_from_stdin(stub):
    result = audit("scan", "-", "-q", input="full\n\nclean\n")
    assert [path for path, _ in stub.calls] == ["full", "clean"]
    assert result.stdout.splitlines()[0] == f"full: {FULL.findings[0].tensor}"
    assert audit("scan", "-", input="").exit_code == 2


def test_quiet_prints_names_only(stub):
    result = audit("scan", "full", "-q")
    assert result.stdout.splitlines() == [f.tensor for f in FULL.findings]
    assert result.stderr == ""
    assert audit("scan", "full", "--format", "plain").stdout == result.stdout


def test_each_format_is_written(stub, tmp_path):
    def out(name: str) -> str:
        return audit("scan", "full", "--format", name).stdout

    assert "SCL101" in out("table")
    assert "at byte 123456, was 0x7F" in out("full")
    assert json.loads(out("json"))["schema_version"] == 1
    assert [json.loads(line)["type"] for line in out("jsonl").splitlines()][-1] == "summary"
    assert len(list(csv.DictReader(io.StringIO(out("csv"))))) == 4
    assert out("markdown").startswith("## Audit of `full`")
    assert json.loads(out("sarif"))["version"] == "2.1.0"
    assert out("github").startswith("::error ")
    assert ET.fromstring(out("junit")).tag == "testsuites"
    assert audit("scan", "full", "--format", "parquet").stdout_bytes.startswith(b"PAR1")


def test_a_report_goes_to_a_file_whole(stub, tmp_path):
    result = audit("scan", "full", "-f", "json", "-o", "report.json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert json.loads((tmp_path / "report.json").read_text())["checkpoint"] == "full"
    assert os.listdir(tmp_path) == ["report.json"]


def test_flags_reach_the_engine(stub, rules):
    audit("scan", "full", "--depth", "full", "--jobs", "3", "--select", "scl,GLB", "--ignore", "SCL102")
    ((path, options),) = stub.calls
    assert (path, options["depth"], options["jobs"]) == ("full", Depth.FULL, 3)
    assert [r.code for r in options["rules"]] == ["SCL101", "GLB102"]
    assert options["progress"] is None  # stderr is no terminal
    audit("scan", "full")
    assert stub.calls[1][1]["rules"] is None
    assert stub.calls[1][1]["depth"] is Depth.SCALES


def test_an_unknown_code_names_its_neighbours(stub, rules):
    result = audit("scan", "full", "--ignore", "SLC101")
    assert result.exit_code == 2
    assert "did you mean SCL101" in result.stderr


ENVIRONMENT = {
    "AUDIT_DEPTH": "headers", "AUDIT_SELECT": "SCL", "AUDIT_IGNORE": "SCL102", "AUDIT_FAIL_ON": "never",
    "AUDIT_FORMAT": "json", "AUDIT_OUTPUT": "out.json", "AUDIT_JOBS": "2", "AUDIT_MIN_SEVERITY": "warning",
}  # fmt: skip


def test_the_environment_stands_in_for_flags(stub, rules, tmp_path):
    assert audit("scan", "full", env=ENVIRONMENT).exit_code == 0
    options = stub.calls[0][1]
    assert (options["depth"], options["jobs"]) == (Depth.HEADERS, 2)
    assert [r.code for r in options["rules"]] == ["SCL101"]
    assert len(json.loads((tmp_path / "out.json").read_text())["findings"]) == 3
    assert audit("scan", "full", "--strict", env=ENVIRONMENT).exit_code == 3
    assert audit("scan", "full", env={"AUDIT_STRICT": "1", "AUDIT_QUIET": "1", "AUDIT_COLOR": "never"}).exit_code == 3


def test_flags_go_before_environment_before_settings(stub, tmp_path):
    (tmp_path / "audit.toml").write_text('depth = "full"\nfail-on = "never"\nformat = "jsonl"\nquiet = true\n')
    assert audit("scan", "full").stdout.startswith("model.layers")
    assert stub.calls[-1][1]["depth"] is Depth.FULL
    audit("scan", "full", env={"AUDIT_DEPTH": "scalars"})
    assert stub.calls[-1][1]["depth"] is Depth.SCALARS
    result = audit("scan", "full", "--depth", "headers", "--format", "json", "--fail-on", "error")
    assert stub.calls[-1][1]["depth"] is Depth.HEADERS
    assert json.loads(result.stdout)
    assert result.exit_code == 1


def test_a_wrong_key_is_named(stub, tmp_path):
    (tmp_path / "audit.toml").write_text("colour = 'never'\n")
    result = audit("scan", "full")
    assert result.exit_code == 2
    assert result.stderr == "audit: audit.toml: unknown key 'colour'; did you mean color?\n"


def test_an_entry_with_a_tensor_excuses_its_findings(stub, rules, tmp_path):
    entry = f'ignore = [{{code = "SCL", tensor = "{NAN.tensor}", reason = "retired"}}]\n'
    (tmp_path / "audit.toml").write_text(entry)
    result = audit("scan", "full", "--format", "json")
    stored = json.loads(result.stdout)
    assert "SCL101" not in {f["code"] for f in stored["findings"]}
    assert stored["summary"]["hidden"]["ignored"] == 1
    (tmp_path / "audit.toml").write_text('ignore = [{code = "XYZ", tensor = "a", reason = "typo"}]\n')
    assert audit("scan", "full").exit_code == 2


def test_a_baseline_hides_what_is_known(stub, tmp_path):
    written = audit("scan", "full", "--write-baseline", "known.json")
    assert written.exit_code == 0
    assert "4 findings written to known.json" in written.stderr
    result = audit("scan", "full", "--baseline", "known.json")
    assert result.exit_code == 0
    assert "4 known from the baseline not shown" in result.stdout
    new = NAN._replace(tensor="model.layers.13.mlp.up_proj.weight_scale")
    stub.audits["full"] = replace(FULL, findings=(*FULL.findings, new))
    result = audit("scan", "full", "--baseline", "known.json", "-q")
    assert result.exit_code == 1
    assert result.stdout == f"{new.tensor}\n"
    assert audit("scan", "faulty", "--write-baseline", "other.json").exit_code == 3


def test_a_pipe_gets_no_colour_unless_asked(stub):
    assert "\x1b" not in audit("scan", "full").stdout
    assert "\x1b[" in audit("scan", "full", "--color", "always").stdout
    assert "\x1b" not in audit("scan", "full", "--color", "always", "-o", "report.txt").stdout


def test_hostile_names_stay_text(stub):
    evil = NAN._replace(tensor="x\x1b]0;owned\x07\u202e[red]", message="\x1b[2Jgone")
    stub.audits["full"] = replace(FULL, findings=(evil,))
    for name in ("table", "full", "plain", "json", "jsonl", "csv", "markdown", "github", "junit", "sarif"):
        raw = audit("scan", "full", "--format", name).stdout
        assert raw.replace("\n", "").isprintable(), name


def test_a_fault_of_the_tool_is_one_line(stub, monkeypatch):
    def broken(path, **options):
        raise KeyError("weight")

    monkeypatch.setattr(engine, "scan", broken)
    result = audit("scan", "full")
    assert result.exit_code == 3
    assert result.stderr.startswith("audit: internal error at test_cli.py:")
    assert result.stderr.count("\n") == 1


def test_an_interrupt_is_130(stub, monkeypatch):
    def interrupted(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "scan", interrupted)
    result = audit("scan", "full")
    assert result.exit_code == 130
    assert result.stderr == "audit: interrupted\n"


def test_the_rules_are_explained(stub, rules):
    listed = audit("explain").stdout
    assert listed.splitlines()[0].split() == ["CODE", "SEVERITY", "TITLE"]
    assert "SCL101  error     NaN block scale" in listed
    page = audit("explain", "scl101")
    assert page.exit_code == 0
    assert page.stdout.startswith("# SCL101: NaN block scale\n")
    unknown = audit("explain", "SCL110")
    assert unknown.exit_code == 2
    assert "no rule 'SCL110'; did you mean SCL10" in unknown.stderr


def test_the_version_and_the_help(stub):
    assert audit("--version").stdout.startswith("audit ")
    shown = audit("scan", "--help").stdout
    for flag in ("--depth", "--baseline", "--write-baseline", "AUDIT_JOBS", "--no-progress"):
        assert flag in shown
