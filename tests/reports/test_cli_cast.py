"""`audit cast` as a user meets it: what it prints, its exit codes, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from repair.make.castrow import CastRow
from reports import casttext
from reports.cli import app
from reports.layout import cells, plain
from tests.forge import make as forged
from tests.repair.make.mxfp4 import draw, gpt_oss, tensors, write

STEM = "model.layers.0.mlp.experts"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    experts = {"gate_up_proj": draw(rng, (2, 8, 2)), "down_proj": draw(rng, (2, 4, 2))}
    return write(tmp_path / "src", gpt_oss(experts))


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["cast", *map(str, words)], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def test_a_cast_prints_its_table_and_leaves_a_folder(source: Path, tmp_path: Path) -> None:
    code, out, _ = run(source, tmp_path / "dst")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.split() == ["SPREAD", "M", "BLOCKS", "EXACT", "SNR", "TENSOR"]
    assert [row.split()[-1] for row in rows[:2]] == [f"{STEM}.down_proj_blocks", f"{STEM}.gate_up_proj_blocks"]
    assert rows[0].split()[-3:-1] == ["%", "inf"]
    assert "96 of 96 blocks exact (100 %)" in out
    assert f"Written to {tmp_path / 'dst'}" in out
    assert f"{STEM}.0.gate_proj.weight_packed" in tensors(tmp_path / "dst")
    code, out, err = run(source, tmp_path / "dst")
    assert (code, out) == (3, "")
    assert "is there already" in err


def test_a_dry_run_tells_the_same_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    code, out, _ = run(source, tmp_path / "dst", "--dry-run", "--format", "json")
    told = json.loads(out)
    assert (code, told["written"], list(tmp_path.iterdir())) == (0, False, [source])
    code, out, _ = run(source, tmp_path / "dst", "--format", "json")
    made = json.loads(out)
    assert made["written"]
    assert made["schema_version"] == 1
    assert made["bytes"] == told["bytes"] == (tmp_path / "dst" / "model.safetensors").stat().st_size
    assert made["files"] == ["tokenizer.json"]
    same = [[{**row, "bytes_copied": 0} for row in one["tensors"]] for one in (told, made)]
    assert same[0] == same[1]
    assert made["summary"]["exact"] == made["summary"]["blocks"] == 96


def test_options(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "a", "--layout", "modelopt", "--activations", "one")[0] == 0
    assert np.frombuffer(tensors(tmp_path / "a")[f"{STEM}.down_proj_input_scale"].data, "<f4") == 1
    assert run(source, tmp_path / "b", "--activations", f"from:{tmp_path / 'a'}", "--jobs", 1)[0] == 0
    assert np.frombuffer(tensors(tmp_path / "b")[f"{STEM}.1.up_proj.input_global_scale"].data, "<f4") == 1
    for wrong in ("two", "from:"):
        assert run(source, tmp_path / "c", "--activations", wrong)[0] == 2
    assert run(source, tmp_path / "c", "--activations", f"from:{tmp_path / 'none'}")[0] == 3
    assert run(tmp_path / "nothing", tmp_path / "c")[0] == 3
    assert run(source / "model.safetensors", tmp_path / "c")[0] == 2
    code, _, err = run(source, tmp_path / "c", "--activations", f"from:{source}")
    assert code == 3
    assert "no NVFP4 activation scale for" in err
    assert not list(tmp_path.glob("c*"))


def test_what_is_refused_is_said_in_one_line(source: Path, tmp_path: Path) -> None:
    made = tensors(source)
    made[f"{STEM}.down_proj_scales"] = made[f"{STEM}.down_proj_scales"].bytes_at(2, b"\xff")
    write(source, made)
    first = ""
    for more in ([], ["--dry-run"]):
        code, _, err = run(source, tmp_path / "dst", *more)
        first = first or err
        assert code == 3
        assert err.strip().count("\n") == 0
        assert "down_proj_scales" in err
        assert "[0, 1, 0]" in err
    assert f"{tmp_path / 'dst.incomplete'} keeps what is done, the same command with --resume goes on" in first
    assert (tmp_path / "dst.incomplete" / "UNFINISHED.json").exists()
    code, _, err = run(source, tmp_path / "dst")
    assert code == 3
    assert "--resume" in err


def test_a_layout_is_changed_too(tmp_path: Path) -> None:
    root = forged("modelopt-nvfp4").write(tmp_path / "src")
    code, out, _ = run(root, tmp_path / "dst")
    assert code == 0
    assert out.split()[:4] == ["SCALES", "EXACT", "ULPS", "TENSOR"]
    assert json.loads(run(root, tmp_path / "dst2", "--format", "json")[1])["tensors"][0]["ulps"] >= 0


def told(*rows: CastRow) -> casttext.Told:
    return casttext.Told("a", "b", "modelopt", "none", rows, 10, 1, 5, done=True)


def test_experts_share_a_row_and_the_worst_speaks_for_them() -> None:
    sound = CastRow("m.experts.0.down_proj.weight", 1, 5, -9, -9, 8, 8, 0.0, 0.0, 0)
    worse = CastRow("m.experts.11.down_proj.weight", 1, 20, -12, -12, 8, 7, 1.0, 1000.0, 1)
    lines = [plain(line) for line in casttext.lines(told(sound, worse), None)]
    assert lines[1].split() == ["20", "-12..-9", "16", "93.8", "%", "30.0", "m.experts.*.down_proj.weight"]
    assert any("1 global scale from amax" in line for line in lines)
    assert any("the worst tensor at 30.0 dB" in line for line in lines)
    assert json.loads(casttext.render(told(sound, worse)))["summary"]["snr_db"] == 30


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_table_fits_the_terminal(width: int) -> None:
    rows = [
        CastRow(f"model.language_model.layers.{i}.block_sparse_moe.experts.gate_up_proj_blocks", 128, 17, -14, -9,
                10**9, 10**9 - i, float(i), 1e6, 0) for i in range(5)]  # fmt: skip
    lines = [plain(line) for line in casttext.lines(told(*rows), width, limit=3)]
    assert max(map(cells, lines)) <= width
    assert any("and 2 more" in line for line in lines)
    assert lines.index(next(line for line in lines if "layers.1" in line)) < 3  # what is not exact comes first


def test_nothing_live_has_no_spread() -> None:
    row = CastRow("x", 1, -1, 0, 0, 4, 4, 0.0, 0.0, 0)
    assert plain(list(casttext.lines(told(row), None))[1]).split()[0] == "-"
    assert json.loads(casttext.render(told(row)))["tensors"][0]["spread"] is None
