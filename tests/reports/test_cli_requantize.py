"""`audit requantize` as a user meets it: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.cli import app
from tests.repair.make.requantising import EXPORTS, declared, tensors
from tests.repair.make.unquantised import source

runner = CliRunner()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("AUDIT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return source("qwen3moe").write(tmp_path / "src")


def audit(*words: str | Path):
    """Run the command."""
    return runner.invoke(app, ["requantize", *(str(word) for word in words)])


def test_the_recipes_are_listed() -> None:
    done = audit("--list-recipes")
    assert done.exit_code == 0
    assert done.stdout.count("nvfp4_") == 3
    assert "least squared error" in done.stdout


def test_a_dry_run_writes_nothing(qwen: Path, tmp_path: Path) -> None:
    done = audit(qwen, "--recipe", "nvfp4_experts_only_mse-fp8_cast_kv", "--dry-run")
    assert done.exit_code == 0
    for words in (
        "model.layers.*.mlp.experts.*.gate_proj", "2 x model.layers.*.mlp.gate.weight: excluded by *mlp.gate.*",
        "2 x model.layers.*.self_attn.q_proj.weight: not selected", "Planned:  18 modules, 111 kB -> 31.2 kB",
        "weights only, declared W4A16_NVFP4", "KV cache is declared FP8",
    ):  # fmt: skip
        assert words in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_a_table_of_what_was_made(qwen: Path, tmp_path: Path) -> None:
    done = audit(qwen, tmp_path / "new", "--recipe", "nvfp4_w4a16", "--jobs", "2")
    assert done.exit_code == 0, done.output
    head, first, *_ = done.stdout.splitlines()
    assert head.split() == ["MODULES", "METHOD", "AMAX", "SQNR", "dB", "MSE", "BYTES", "WEIGHTS"]
    assert first.split()[:2] == ["6", "amax"]
    assert "Made:     26 modules in NVFP4" in done.stdout
    assert declared(tmp_path / "new")["quant_algo"] == "W4A16_NVFP4"


def test_json(qwen: Path, tmp_path: Path) -> None:
    words = (qwen, tmp_path / "new", "--recipe", "nvfp4_w4a16", "--format", "json")
    planned = json.loads(audit(*words, "--dry-run").stdout)
    made = json.loads(audit(*words, "--layout", "compressed-tensors", "--method", "mse").stdout)
    assert planned["written"] is False
    assert planned["total"]["modules"] == made["total"]["modules"] == 26
    assert made["recipe"]["method"] == "mse"
    assert made["recipe"]["layout"] == "compressed-tensors"
    assert 15 < made["total"]["sqnr_db"] < 25
    assert {one["tensor"]: one["reason"] for one in made["left"]}["lm_head.weight"] == "excluded by *lm_head*"
    size = sum(path.stat().st_size for path in (tmp_path / "new").glob("*.safetensors"))
    assert made["target"]["bytes"] == size
    assert declared(tmp_path / "new")["format"] == "nvfp4-pack-quantized"


def test_selected_tensors_only(qwen: Path, tmp_path: Path) -> None:
    words = ("--include", "*layers.1.mlp*", "--include", "*layers.1.self_attn*", "--exclude", "*o_proj")
    assert audit(qwen, tmp_path / "new", "--recipe", "nvfp4_w4a16", *words).exit_code == 0
    made = {name.removesuffix(".weight_scale") for name in tensors(tmp_path / "new") if name.endswith("weight_scale")}
    assert len(made) == 12
    assert all(name.startswith("model.layers.1.") and not name.endswith("o_proj") for name in made)


def test_calibrated_input_scales(tmp_path: Path) -> None:
    root, real = EXPORTS / "llama_nvfp4__source", EXPORTS / "llama_nvfp4"
    done = audit(root, tmp_path / "new", "--recipe", "nvfp4_w4a16", "--activations", f"from:{real}")
    assert done.exit_code == 0, done.output
    assert tensors(tmp_path / "new") == tensors(real)
    assert "W4A16" not in done.stdout


def test_going_on_needs_the_same_recipe(qwen: Path, tmp_path: Path) -> None:
    """Cut off after the note was written: the same words go on, other words are refused."""
    from auditor.checkpoint import open_checkpoint
    from repair.make import folder, recipefile
    from repair.make.requantise import job, plan
    from repair.make.sources import Sources

    assert audit(qwen, tmp_path / "whole", "--recipe", "nvfp4_w4a16").exit_code == 0
    checkpoint = open_checkpoint(qwen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with Sources(checkpoint) as sources:
        wanted = job(plan(checkpoint, recipefile.load("nvfp4_w4a16")), sources)
        with pytest.raises(KeyboardInterrupt):
            folder.make(wanted, tmp_path / "new", progress=stop)
    assert (tmp_path / "new.incomplete" / "UNFINISHED.json").exists()
    again = (qwen, tmp_path / "new", "--recipe", "nvfp4_w4a16")
    assert audit(*again).exit_code == 3
    refused = audit(*again, "--resume", "--method", "mse")
    assert refused.exit_code == 3
    assert "options" in refused.stderr
    assert audit(*again, "--resume").exit_code == 0
    assert tensors(tmp_path / "new") == tensors(tmp_path / "whole")


WRONG = [
    ((), "name the unquantised checkpoint and the new folder", 2),
    (("src",), "name the unquantised checkpoint and the new folder", 2),
    (("src", "new"), "--recipe is missing: a YAML file, or one of nvfp4_experts_only", 2),
    (("src", "new", "--recipe", "nvfp4_w4a61"), "did you mean 'nvfp4_w4a16'", 2),
    (("src", "new", "--recipe", "nvfp4_w4a16", "--activations", "two"), "none, one, from:DIR", 2),
    (("src", "new", "--recipe", "nvfp4_w4a16", "--activations", "from"), "none, one, from:DIR", 2),
    (("src", "new", "--recipe", "nvfp4_w4a16", "--activations", "one:x"), "none, one, from:DIR", 2),
    (("src", "src", "--recipe", "nvfp4_w4a16"), "is there already", 3),
    (("nowhere", "new", "--recipe", "nvfp4_w4a16"), "nowhere", 3),
    (("src", "new", "--recipe", "nvfp4_w4a16", "--include", "*nothing*"), "nothing to requantize", 3),
    (("src", "new", "--recipe", "nvfp4_w4a16", "--include", "*q_proj*"), "a server fuses them", 3),
]


@pytest.mark.parametrize(("words", "message", "code"), WRONG, ids=[" ".join(words[2:]) for words, *_ in WRONG])
def test_what_is_wrong_is_one_line(words: tuple[str, ...], message: str, code: int, qwen: Path, tmp_path: Path) -> None:
    done = audit(*words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_wrong_recipe_file_names_its_line(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("modules: mlp\nmethod: mes\n")
    done = audit(qwen, tmp_path / "new", "--recipe", "r.yaml")
    assert done.exit_code == 2
    assert "r.yaml:2: method: found 'mes'; allowed: amax, mse; did you mean 'mse'?" in done.stderr
