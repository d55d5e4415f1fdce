"""Recipes as files: the shipped ones, and everything that can be wrong with one, said with its line."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import UsageError
from repair.make.layouts import Layout
from repair.make.recipe import PRESETS, Inputs, KvCache, Method, Ragged, Recipe
from repair.make.recipefile import load, parse, shipped


def test_the_shipped_ones():
    assert list(shipped()) == ["nvfp4_experts_only_mse-fp8_cast_kv", "nvfp4_mlp_only_mse-fp8_cast_kv", "nvfp4_w4a16"]
    mse = load("nvfp4_experts_only_mse-fp8_cast_kv")
    assert (mse.modules, mse.method, mse.kv_cache) == (PRESETS["experts"], Method.MSE, KvCache.FP8_CAST)
    assert load("nvfp4_mlp_only_mse-fp8_cast_kv").modules == PRESETS["mlp"]
    plain = load("nvfp4_w4a16")
    assert (plain.modules, plain.method, plain.activations) == (PRESETS["linears"], Method.AMAX, Inputs.NONE)
    assert all(recipe.description for recipe in shipped().values())


def test_the_exporters_newer_spelling():
    assert load("nvfp4_mlp_only_mse-kv_fp8_cast") == load("nvfp4_mlp_only_mse-fp8_cast_kv")


def test_every_key(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "description: all of it\nmodules: ['*mlp*', '*attn*']\nexclude: ['*.0.*']\ndefault_exclusions: false\n"
        "method: mse\nactivations: one\nkv_cache: fp8_cast\nlayout: compressed-tensors\nragged: refuse\n"
    )
    assert load(str(path)) == Recipe(
        "mine", "all of it", ("*mlp*", "*attn*"), ("*.0.*",), False, Method.MSE, Inputs.ONE, KvCache.FP8_CAST,
        Layout.COMPRESSED_TENSORS, Ragged.REFUSE,
    )  # fmt: skip


WRONG = [
    ("method: mes", "f.yaml:1: method: found 'mes'; allowed: amax, mse; did you mean 'mse'?"),
    ("\n\nmethod: max", "f.yaml:3: method: found 'max'; allowed: amax, mse; did you mean 'amax'?"),
    ("modules: expert", "f.yaml:1: modules: found 'expert'; allowed: linears, mlp, experts; did you mean 'experts'?"),
    ("methd: mse", "f.yaml:1: found key 'methd'; allowed: description, modules, exclude, default_exclusions, method,"),
    ("kv_cache: nvfp4", "f.yaml:1: kv_cache: found 'nvfp4'; allowed: none, fp8_cast"),
    ("layout: [a]", "f.yaml:1: layout: found a list where one word belongs"),
    ("exclude: lm_head", "f.yaml:1: exclude: found 'lm_head' where a list of patterns belongs"),
    ("exclude:\n- a\n- {b: c}", "f.yaml:3: exclude: found a table where a pattern belongs"),
    ("exclude: ['']", "f.yaml:1: exclude: found nothing where a pattern belongs"),
    ("modules: []", "f.yaml:1: modules: an empty list would quantise nothing"),
    ("method: mse\nmethod: mse", "f.yaml:2: 'method' is there twice"),
    ("default_exclusions: yes", "f.yaml:1: default_exclusions: found 'yes'; allowed: true, false"),
    ("[1]", "f.yaml:1: found a list; a recipe is"),
    ("", "f.yaml:1: found nothing; a recipe is"),
    ("a: [", "f.yaml:1: no YAML: "),
    ("--- a\n--- b", "f.yaml:2: no YAML: "),
    ("[" * 5000, "f.yaml: nested too deeply"),
    ("? [a]\n: b", "f.yaml:1: found key 'a list'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:20] for text, _ in WRONG])
def test_what_is_wrong_is_said_with_its_line(text: str, message: str):
    with pytest.raises(UsageError) as error:
        parse(text.encode(), "f.yaml")
    assert str(error.value).startswith(message)


def test_bytes_that_are_no_text_or_too_many(tmp_path: Path):
    with pytest.raises(UsageError, match="no UTF-8 at byte 8"):
        parse(b"method: \xff", "f.yaml")
    (tmp_path / "f.yaml").write_bytes(b"#" * 70_000)
    with pytest.raises(UsageError, match="longer than"):
        load(str(tmp_path / "f.yaml"))
    os.mkfifo(tmp_path / "p.yaml")
    with pytest.raises(UsageError, match="a named pipe"):
        load(str(tmp_path / "p.yaml"))


@given(st.binary(max_size=80) | st.text(alphabet="methodmsexcluse:[]{}&*!-\n \"'", max_size=60).map(str.encode))
def test_any_bytes_are_a_recipe_or_one_error(raw: bytes):
    with contextlib.suppress(UsageError):
        assert isinstance(parse(raw, "f.yaml"), Recipe)


def test_names_that_are_not_there(tmp_path: Path):
    with pytest.raises(UsageError, match="did you mean 'nvfp4_w4a16'"):
        load("nvfp4_w4a6")
    with pytest.raises(UsageError, match="cannot read recipe"):
        load(str(tmp_path / "none.yaml"))
