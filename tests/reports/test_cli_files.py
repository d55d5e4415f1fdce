"""The files that a user names, and those that only lie about: what is written over, obeyed, taken for a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports import demo
from reports.cli import app
from reports.cli.hints import hint
from tests.repair.mending import hashes

runner = CliRunner()


@pytest.fixture(autouse=True)
def _elsewhere(unset: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def audit(*words: str | Path, **options):
    """Run the command."""
    result = runner.invoke(app, [str(word) for word in words], **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("name", [SHARD, "config.json", "model.safetensors.index.json", "new.safetensors"])
@pytest.mark.parametrize("words", [["scan", ".", "-o"], ["scan", ".", "--write-baseline"], ["repair", ".", "-o"],
                                   ["repair", ".", "--plan"], ["compare", ".", ".", "-o"]], ids=" ".join)  # fmt: skip
def test_no_report_is_written_over_a_checkpoint(damaged: Path, words: list[str], name: str) -> None:
    before = hashes(damaged)
    target = damaged / ".." / "damaged" / name
    result = audit(*[damaged if word == "." else word for word in words], target)
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(target) in result.stderr
    assert hashes(damaged) == before


def test_a_source_is_read_too(damaged: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    demo.forge(source, damaged=False)
    result = audit("repair", damaged, "--source", source, "-o", source / "config.json")
    assert result.exit_code == 2
    assert "is a file of" in result.stderr
    assert audit("repair", damaged, "--out", "out", "-o", "out/config.json", "--write").exit_code == 2


def test_a_repair_is_reported_to_a_file(damaged: Path, tmp_path: Path) -> None:
    result = audit("repair", damaged, "--risk", "guess", "--write", "--format", "json", "-o", "report.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(Path("report.json").read_text())["outcome"]["errors_left"] == 1
    assert audit("repair", damaged, "-o", "report.txt").stdout == ""
    assert Path("report.txt").read_text() == audit("repair", damaged).stdout
    late = audit("repair", damaged, "-o", "gone/report.txt")
    assert late.exit_code == 3
    assert late.stderr == "audit: cannot write gone/report.txt: No such file or directory; all else is done\n"


@pytest.mark.parametrize("command", [["scan", "."], ["repair", "."], ["compare", ".", "."]], ids=" ".join)
def test_settings_of_a_checkpoint_are_not_obeyed(
    damaged: Path, monkeypatch, command: list[str], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (damaged / "audit.toml").write_text('output = "../victim"\nignore = ["ALL"]\nfail-on = "never"\nselect = ["NO"]\n')
    monkeypatch.chdir(damaged)
    result = audit(*command)
    assert result.exit_code == (0 if command[0] == "compare" else 1)
    assert result.stderr == (
        f"audit: audit.toml lies in a checkpoint ({damaged}): not obeyed unless --config names it\n"
    )
    assert victim.read_text() == "precious"
    (damaged / "sub").mkdir()
    monkeypatch.chdir(damaged / "sub")
    Path("pyproject.toml").write_text("[tool.audit]\nselect = ['NO']\n")
    assert "pyproject.toml lies in a checkpoint" in audit(*[".." if w == "." else w for w in command]).stderr
    Path("pyproject.toml").write_text("[tool.other]\n")
    assert audit(*[".." if w == "." else w for w in command]).stderr == ""
    (tmp_path / "work" / "audit.toml").symlink_to(damaged / "audit.toml")
    monkeypatch.chdir(tmp_path / "work")
    assert "lies in a checkpoint" in audit(*[damaged if w == "." else w for w in command]).stderr


def test_rules_that_are_off_are_told(damaged: Path) -> None:
    assert "Settings" not in audit("scan", damaged).stdout
    assert "Settings  options: 3 rules off\n" in audit("scan", damaged, "--ignore", "KVC").stdout
    assert "Settings  options: nothing below error listed\n" in audit("scan", damaged, "--min-severity", "error").stdout
    assert "settings: options: 3 rules off" in audit("scan", damaged, "--ignore", "KVC", "-f", "sarif").stdout
    Path("audit.toml").write_text('ignore = ["KVC"]\noutput = "out.txt"\n')
    result = audit("scan", damaged, "--min-severity", "error")
    assert (result.stdout, result.stderr) == ("", "audit: the report is in out.txt, as audit.toml says\n")
    told = "Settings  audit.toml, options: 3 rules off, nothing below error listed, output out.txt\n"
    assert told in Path("out.txt").read_text()
    stored = json.loads(audit("scan", damaged, "-f", "json", "--config", "audit.toml", "-o", "o.json").stdout or "null")
    assert stored is None
    summary = json.loads(Path("o.json").read_text())["summary"]
    assert summary["settings"] == {
        "from": ["audit.toml"], "rules_off": ["KVC101", "KVC102", "KVC103"], "min_severity": "info",
        "output": None, "baseline": None,
    }  # fmt: skip
    repaired = audit("repair", damaged)
    assert "Settings  audit.toml: 3 rules off\n" in repaired.stdout
    assert json.loads(audit("repair", damaged, "-f", "json").stdout)["settings"]["rules_off"][0] == "KVC101"
    audit("scan", damaged, "-f", "markdown")
    assert "- Settings: " in Path("out.txt").read_text()


def test_files_that_never_end_are_refused(damaged: Path) -> None:
    os.mkfifo("pipe")
    for words in (["--baseline", "pipe"], ["--config", "pipe"], ["--baseline", "/dev/zero"], ["--config", "/dev/zero"]):
        result = audit("scan", damaged, *words)
        assert result.exit_code == 2
        assert "not a regular file" in result.stderr
    Path("audit.toml").write_text("#" * (1 << 16) + "\n")
    assert "none is longer than 65536" in audit("scan", damaged).stderr


def test_a_list_of_names_that_are_no_text(damaged: Path, tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path) + b"/\xff"
    os.symlink(os.fsencode(damaged), strange)
    result = audit("scan", "-", "-f", "json", input=strange + b"\n")
    assert json.loads(result.stdout)["checkpoint"] == os.fsdecode(strange)
    log = json.loads(audit("scan", "-", "-f", "sarif", input=strange + b"\n").stdout)
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert "/%FF/model-0000" in place


def test_bytes_are_not_for_a_terminal(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quant.errors import UsageError
    from reports.cli import printing

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="parquet is binary"):
        printing.expect_text("parquet", None)
    printing.expect_text("parquet", Path("out.parquet"))
    printing.expect_text("json", None)


def test_every_command_is_summed_up_in_a_line() -> None:
    shown = audit("--help", env={"COLUMNS": "80"}).stdout.partition("Commands:")[2]
    assert len(shown.strip().splitlines()) == 8
    assert "..." not in shown
    assert "CHECKPOINT..." in audit("scan", "--help").stdout.splitlines()[0]


@pytest.mark.parametrize("words", [["scan"], ["repair"], ["undo"], ["cast", "{}", "new"], ["compare", "{}", "{}"],
                                   ["requantize", "{}", "new", "--recipe", "nvfp4_w4a16"]], ids=" ".join)  # fmt: skip
def test_what_is_not_there_ends_with_3_and_a_hint(words: list[str]) -> None:
    words = [*words, "{}"] if len(words) == 1 else words
    result = audit(*(word.format("owner/model") for word in words))
    assert result.exit_code == 3, result.output
    assert "owner/model: no such file or folder; if that is its name on the hub, download it first:" in result.stderr


def test_hints(tmp_path: Path) -> None:
    assert hint("owner/model@abc").endswith("hf download owner/model --revision abc --local-dir DIR")
    assert "download it first" in hint("https://huggingface.co/owner/model")
    assert hint("gone") == hint("/gone/a") == hint("a/b/c") == ""
    assert "GGUF is not read" not in hint("gone.gguf")
    for name, told in (("a.gguf", "GGUF is not read"), ("pytorch_model.bin", "never loaded")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        assert told in hint(str(folder))
        assert told in hint(str(folder / name))
        assert told in audit("scan", folder).stderr
        (folder / "model.safetensors").touch()
        assert hint(str(folder)) == ""


def test_one_is_one(damaged: Path, tmp_path: Path) -> None:
    known = audit("scan", damaged, "--select", "ACT101", "--write-baseline", "known.json")
    assert known.stderr == "audit: 1 finding written to known.json\n"
    copied = audit("repair", damaged, "--out", "out", "--write")
    assert "Verified: 1 file patched, " in copied.stdout
    written = audit("repair", damaged, "--write")
    assert "Verified: 1 range read back; " in written.stdout
    assert "1 B put back; 1 range read back; " in audit("undo", damaged).stdout
    os.link(damaged / SHARD, tmp_path / "other")
    assert "its bytes have 1 other name (hard links); " in audit("repair", damaged, "--write").stderr
