"""`audit repair --apply`: a plan from elsewhere is carried out, shown and judged as one that was made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repair import apply as transaction
from tests.repair.mending import hashes
from tests.reports.test_cli_repair import _no_environment, audit

__all__ = ["_no_environment"]  # a fixture


@pytest.fixture
def plan(damaged: Path, tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    assert audit("repair", damaged, "--risk", "guess", "--plan", file).exit_code == 1
    return file


def test_the_rules_run_again(damaged: Path, plan: Path) -> None:
    done = audit("repair", damaged, "--apply", plan, "--write")
    assert done.exit_code == 1, "an error is left: the missing scale"
    assert "Verified: 7 ranges read back" in done.stdout
    assert "Scanned again: 5 findings gone, 1 error left." in done.stdout
    assert f"audit undo {damaged} --entry 1" in done.stdout
    again = audit("repair", damaged, "--apply", plan, "--write")
    assert again.exit_code == 1
    assert "all its new bytes are there already" in again.stderr
    assert "Written" not in again.stdout


def test_json_and_a_file(damaged: Path, plan: Path) -> None:
    report = Path("report.json")
    done = audit("repair", damaged, "--apply", plan, "--write", "--format", "json", "-o", report)
    assert (done.exit_code, done.stdout) == (1, "")
    told = json.loads(report.read_text())
    assert told["written"]
    assert told["risk"] == "guess"
    assert {repair["code"] for repair in told["repairs"]} == {"SCL101", "GLB102", "ACT101"}
    assert [skipped["code"] for skipped in told["skipped"]] == ["ACT103"]
    assert (told["outcome"]["errors_left"], told["outcome"]["findings_gone"]) == (1, 5)
    assert sum(layer["bytes"] for layer in told["layers"]) == told["bytes"] == 147


def test_a_part_of_a_repair_is_refused(damaged: Path, plan: Path) -> None:
    before = hashes(damaged)
    stored = json.loads(plan.read_text())
    whole = stored["patches"]
    for at, entry in enumerate(whole):
        alone = sum(other["tie"] == entry["tie"] for other in whole) == 1
        plan.write_text(json.dumps({**stored, "patches": whole[:at] + whole[at + 1 :]}))
        done = audit("repair", damaged, "--apply", plan)
        assert done.exit_code == (1 if alone else 3)
        assert alone or "entries of one repair are there" in done.stderr
    (fused,) = {entry["tie"] for entry in whole if entry["rule"] == "GLB102"}
    tied = {entry["tensor"].rpartition(".")[2] for entry in whole if entry["tie"] == fused}
    assert tied == {"weight_scale", "weight_scale_2"}
    plan.write_text(json.dumps({**stored, "patches": [entry for entry in whole if entry["tie"] != fused]}))
    assert hashes(damaged) == before
    assert audit("repair", damaged, "--apply", plan, "--write").exit_code == 1, "one repair fewer is a plan, too"


def test_a_plan_that_ties_nothing_is_judged_by_what_is_left(damaged: Path, plan: Path) -> None:
    stored = json.loads(plan.read_text())
    del stored["ties"]
    patches = [{key: value for key, value in entry.items() if key != "tie"} for entry in stored["patches"]]
    fused = next(at for at, entry in enumerate(patches) if entry["tensor"].endswith("weight_scale_2"))
    plan.write_text(json.dumps({**stored, "patches": patches[:fused] + patches[fused + 1 :]}))
    done = audit("repair", damaged, "--apply", plan, "--write")
    assert done.exit_code == 1
    assert "2 errors left" in done.stdout


def test_a_failed_rollback_names_the_next_command(damaged: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repair.refusals import UnfinishedError

    def fails(*_: object) -> None:
        raise UnfinishedError("taking it back failed too")

    monkeypatch.setattr(transaction, "apply", fails)
    odd = damaged.rename(damaged.parent / "it's")
    for words in (["--apply", plan], ["--risk", "guess"]):
        done = audit("repair", odd, *words, "--write")
        assert done.exit_code == 3
        assert done.stderr.endswith(f"""; next: audit undo '{damaged.parent}/it'"'"'s'\n""")


def test_a_plan_cannot_write_to_the_terminal(damaged: Path, plan: Path) -> None:
    stored = json.loads(plan.read_text())
    for entry in (*stored["patches"], *stored["skipped"]):
        rule = "rule" if "rule" in entry else "code"
        entry.update({rule: "\x1b[2J\u202e", "reason": "\x1b]0;owned\x07"})
    plan.write_text(json.dumps(stored))
    for words in ((), ("--write",)):
        shown = audit("repair", damaged, "--apply", plan, *words).stdout
        assert shown.replace("\n", "").isprintable()
        assert "\\x1b[2J" in shown
    assert audit("undo", damaged, "--list").stdout.replace("\n", "").isprintable()
