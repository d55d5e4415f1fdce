"""`audit repair` and `audit undo` as a user meets them: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports import demo
from reports.cli import app
from reports.quantity import size
from tests.repair.mending import hashes

runner = CliRunner()


@pytest.fixture(autouse=True)
def _no_environment(unset: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def audit(*words: str | Path):
    """Run the command."""
    return runner.invoke(app, [str(word) for word in words])


def test_a_dry_run_writes_nothing_and_says_what_it_would(damaged: Path) -> None:
    before = hashes(damaged)
    done = audit("repair", damaged, "--risk", "guess")
    assert done.exit_code == 1
    assert "5 repairs (1 exact, 2 bounded, 2 guess): 147 B in 2 files" in done.stdout
    assert "Nothing was written" in done.stdout
    for word in ("scale NaN -> 0x7E", "codes 0x77 -> 0x00", "error 183 % -> 2.97 %", "peer-max", "ACT103", "--out DIR"):
        assert word in done.stdout
    assert hashes(damaged) == before
    assert not (damaged / ".audit").exists()


def test_exact_is_the_default_and_the_rest_is_counted(damaged: Path) -> None:
    done = audit("repair", damaged)
    assert "1 repair (1 exact): 1 B in 1 file, 2 more with --risk bounded, 2 more with --risk guess" in done.stdout
    assert "1 more with --out DIR --write." in done.stdout
    assert "needs --risk guess" in done.stdout


def test_write_then_nothing_to_do_then_undo(damaged: Path) -> None:
    before = hashes(damaged)
    done = audit("repair", damaged, "--risk", "guess", "--write")
    assert done.exit_code == 1, "an error is left: the missing scale"
    assert "Verified: 7 ranges read back" in done.stdout
    assert "5 findings gone" in done.stdout
    assert done.stdout.endswith(f"To take it back: audit undo {damaged} --entry 1\n")
    again = audit("repair", damaged, "--risk", "guess", "--write")
    assert "Nothing to repair at this risk, 1 more with --out DIR --write." in again.stdout
    listed = audit("undo", damaged, "--list")
    assert listed.exit_code == 0
    assert "7 records" in listed.stdout
    shown = audit("undo", damaged, "--dry-run")
    assert shown.exit_code == 1
    assert "147 B in 2 files would be put back" in shown.stdout
    taken = audit("undo", damaged)
    assert taken.exit_code == 0, taken.output
    assert hashes(damaged) == before
    assert "undone by 2" in audit("undo", damaged, "--list").stdout


def test_a_copy_mends_what_needs_a_rewritten_shard(damaged: Path, tmp_path: Path) -> None:
    before = hashes(damaged)
    out = tmp_path / "out"
    planned = audit("repair", damaged, "--risk", "guess", "--out", out)
    assert planned.exit_code == 1
    assert "--write makes the copy" in planned.stdout
    assert not out.exists(), "nothing is written unasked"
    done = audit("repair", damaged, "--risk", "guess", "--out", out, "--write")
    assert done.exit_code == 0, done.output
    assert "no errors left" in done.stdout
    assert hashes(damaged) == before
    assert audit("scan", out).exit_code == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert "model.layers.1.mlp.experts.2.down_proj.input_scale" in index["weight_map"]
    assert audit("repair", damaged, "--risk", "guess", "--out", out, "--write").exit_code == 3, "it is there already"


MISSING = "model.layers.1.mlp.experts.2.down_proj.weight"


def test_what_only_a_copy_mends_is_said_everywhere(damaged: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = audit("repair", damaged, "--risk", "guess", "--plan", file)
    assert "Mended only in a copy (--out DIR --write):" in done.stdout
    assert "1 finding not mended by it" in done.stderr
    skipped = json.loads(file.read_text())["skipped"]
    assert [s["code"] for s in skipped] == ["ACT103"]
    assert "mended only in a copy, with --out DIR --write: " in skipped[0]["reason"]
    shown = audit("repair", damaged, "--apply", file)
    assert "Left as they are:" in shown.stdout
    assert "mended only in a copy" in shown.stdout
    report = json.loads(audit("repair", damaged, "--format", "json").stdout)
    assert [(s["code"], s["tensor"]) for s in report["copy_only"]] == [("ACT103", MISSING)]
    assert "--out DIR --write --risk " in report["copy_only"][0]["reason"]
    assert report["rewritten"] == []


def test_a_plan_saved_beside_a_copy_is_of_what_can_be_done_in_place(damaged: Path, tmp_path: Path) -> None:
    plain, beside = tmp_path / "plain.json", tmp_path / "beside.json"
    audit("repair", damaged, "--risk", "guess", "--plan", plain)
    done = audit("repair", damaged, "--risk", "guess", "--plan", beside, "--out", tmp_path / "out", "--format", "json")
    assert json.loads(done.stdout)["rewritten"] == ["model.layers.1.mlp.experts.2.down_proj.input_scale"]
    assert json.loads(done.stdout)["copy_only"] == []
    assert "1 finding not mended by it" in done.stderr
    assert beside.read_text() == plain.read_text()


def test_a_copy_alone_is_something_to_do(damaged: Path, tmp_path: Path) -> None:
    audit("repair", damaged, "--risk", "guess", "--write")
    done = audit("repair", damaged, "--risk", "guess", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "--write makes the copy" in done.stdout


def test_a_copy_that_failed_may_be_removed(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "out.incomplete").mkdir()
    done = audit("repair", damaged, "--risk", "guess", "--out", tmp_path / "out", "--write")
    assert done.exit_code == 3
    assert "out.incomplete: is there already" in done.stderr
    assert "may be removed" in done.stderr


def test_a_plan_that_names_another_tensor_is_refused(damaged: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    audit("repair", damaged, "--plan", plan)
    text = plan.read_text()
    name = "model.layers.0.self_attn.o_proj.weight_scale"
    assert name in text
    plan.write_text(text.replace(name, "model.layers.0.self_attn.q_proj.weight_scale"))
    before = hashes(damaged)
    for words in ((), ("--write",)):
        refused = audit("repair", damaged, "--apply", plan, *words)
        assert refused.exit_code == 3, refused.output
    assert hashes(damaged) == before


def test_json_has_everything(damaged: Path) -> None:
    planned = json.loads(audit("repair", damaged, "--risk", "bounded", "--format", "json").stdout)
    assert planned["written"] is False
    assert {r["code"] for r in planned["repairs"]} == {"SCL101", "GLB102", "ACT101"}
    (glb,) = [r for r in planned["repairs"] if r["code"] == "GLB102"]
    assert glb["safety"] == "bounded"
    assert 0.02 < glb["effects"][0]["after"] < 0.04
    assert all(s["reason"] for s in planned["skipped"])
    written = json.loads(audit("repair", damaged, "--risk", "bounded", "--format", "json", "--write").stdout)
    assert written["written"] is True
    assert written["outcome"]["findings_new"] == []
    assert written["outcome"]["findings_gone"] == 3
    entries = json.loads(audit("undo", damaged, "--list", "--format", "json").stdout)["entries"]
    assert [e["kind"] for e in entries] == ["repair"]


def test_a_plan_is_saved_and_applied_elsewhere(damaged: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    demo.forge(other)
    plan = tmp_path / "plan.json"
    assert audit("repair", damaged, "--risk", "guess", "--plan", plan).exit_code == 1
    shown = audit("repair", other, "--apply", plan)
    assert shown.exit_code == 1
    assert "Nothing was written" in shown.stdout
    assert audit("repair", other, "--apply", plan, "--write").exit_code == 1, "an error is left: the missing scale"
    assert audit("repair", damaged, "--risk", "guess", "--write").exit_code == 1
    assert hashes(other) == hashes(damaged)
    (other / "model-00001-of-00002.safetensors").write_bytes(b"something else")
    refused = audit("repair", other, "--apply", plan, "--write")
    assert refused.exit_code == 3


def test_select_and_ignore_choose_what_is_repaired(damaged: Path) -> None:
    only = json.loads(audit("repair", damaged, "--risk", "guess", "--select", "ACT", "--format", "json").stdout)
    assert {r["code"] for r in only["repairs"]} == {"ACT101"}
    rest = json.loads(audit("repair", damaged, "--risk", "guess", "--ignore", "ACT", "--format", "json").stdout)
    assert {r["code"] for r in rest["repairs"]} == {"SCL101", "GLB102"}


@pytest.mark.parametrize("policy", ["min-positive", "floor=0.001", "peer-max"])
def test_policies(damaged: Path, policy: str) -> None:
    words = ("repair", damaged, "--risk", "guess", "--policy", policy, "--select", "ACT101", "--format", "json")
    (repair,) = json.loads(audit(*words).stdout)["repairs"]
    assert policy.partition("=")[0].replace("floor", "floor") in repair["reason"]
    if policy.startswith("floor"):
        assert repair["change"] == "0 -> 0.001"


@pytest.mark.parametrize(
    "words",
    [
        ("--policy", "largest"),
        ("--policy", "floor"),
        ("--policy", "floor=-1"),
        ("--policy", "floor=nan"),
        ("--policy", "peer-max=3"),
        ("--include", "NOPE"),
        ("--risk", "all"),
        ("--select", "NOPE999"),
        ("--apply", "no-such-plan.json"),
    ],
)
def test_wrong_usage_ends_with_2(damaged: Path, words: tuple[str, ...]) -> None:
    assert audit("repair", damaged, *words).exit_code == 2


def test_what_cannot_be_read_ends_with_3(tmp_path: Path) -> None:
    assert audit("repair", tmp_path / "nowhere").exit_code == 3
    assert audit("undo", tmp_path / "nowhere").exit_code == 3
    (tmp_path / "plan.json").write_text("{}")
    assert audit("repair", tmp_path / "nowhere", "--apply", "plan.json").exit_code == 3
    empty = tmp_path / "empty"
    empty.mkdir()
    assert audit("repair", empty).exit_code == 3
    assert audit("undo", empty).exit_code == 3


def test_a_sound_checkpoint_has_nothing_to_repair(tmp_path: Path) -> None:
    folder = tmp_path / "sound"
    folder.mkdir()
    demo.forge(folder, damaged=False)
    done = audit("repair", folder, "--risk", "guess", "--write")
    assert (done.exit_code, done.stdout) == (0, "Nothing to repair.\n")
    assert not (folder / ".audit").exists()


def test_hard_links_are_refused(damaged: Path, tmp_path: Path) -> None:
    os.link(damaged / "model-00001-of-00002.safetensors", tmp_path / "second-name")
    before = hashes(damaged)
    done = audit("repair", damaged, "--write")
    assert done.exit_code == 3
    assert "link" in done.stderr
    assert hashes(damaged) == before


def test_settings_are_taken_from_the_environment(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_RISK", "bounded")
    assert "2 bounded" in audit("repair", damaged).stdout


def test_what_is_written_counts_the_small_files(damaged: Path) -> None:
    """A repair of the index alone writes as much as the index is long."""
    path = damaged / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(index))
    words = damaged, "--select", "FIL"
    told = json.loads(audit("repair", *words, "--format", "json").stdout)
    done = audit("repair", *words, "--write")
    assert told["bytes"] == path.stat().st_size
    assert f"Written: {size(told['bytes'])} in 1 file." in done.stdout
    assert size(told["bytes"]) in audit("undo", damaged, "--dry-run").stdout


def test_a_copy_of_links(damaged: Path, tmp_path: Path) -> None:
    """What does not change is the same file in both; what changes is not, and the copy is sound."""
    before, out = hashes(damaged), tmp_path / "out"
    done = audit("repair", damaged, "--select", "GLB,CFG", "--risk", "bounded", "--out", out, "--link", "--write")
    assert "linked" in done.stdout
    assert hashes(damaged) == before
    same = {p.name: p.stat().st_ino == (out / p.name).stat().st_ino for p in damaged.iterdir()}
    assert same == {name: hashes(out)[name] == digest for name, digest in before.items()}
    assert not all(same.values())
    assert "hard links" in audit("repair", damaged, "--risk", "guess", "--write").stderr
    assert audit("repair", damaged, "--link").exit_code == 2
