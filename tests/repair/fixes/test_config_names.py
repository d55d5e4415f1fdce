"""CFG108: garbled names are mended, never onto a name that says something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Depth
from auditor.finding import Safety
from repair.fixes.desk import Options
from tests.forge import make
from tests.repair.mending import Mended, mend

EXACT = Options()
NAME = "model.layers.0.self_attn.q_proj"
MARKER = ".\0backbone.pt_name_sentinel"


def mixed(root: Path, entries: dict[str, Any], *, lists: bool = True) -> Mended:
    """A MIXED_PRECISION checkpoint whose tables hold these entries in place of one layer's, repaired."""
    model = make("modelopt-mixed").copy()
    for declared in model.quantization():
        table = declared["quantized_layers"]
        del table[NAME]
        table |= entries
        if not lists:
            declared.pop("ignore", None)
            declared.pop("exclude_modules", None)
    return mend(model.write(root), EXACT, Depth.HEADERS)


def tables(root: Path) -> list[dict[str, Any]]:
    """The tables of both files, and proof that no key occurs twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    first = json.loads((root / "config.json").read_text(), object_pairs_hook=unique)["quantization_config"]
    second = json.loads((root / "hf_quant_config.json").read_text(), object_pairs_hook=unique)["quantization"]
    return [first["quantized_layers"], second["quantized_layers"]]


def garbled(mended: Mended) -> list[Any]:
    """The remedies before, one for each file; the codes that are left."""
    return [f.fix for f in mended.before.findings if f.code == "CFG108"]


FP8, NVFP4 = {"quant_algo": "FP8"}, {"quant_algo": "NVFP4", "group_size": 16}


@pytest.mark.parametrize("garble", [" ", "\n", "\0", "\x07 ", MARKER, " " + MARKER])
@pytest.mark.parametrize("lists", [True, False])
def test_a_name_of_the_table(garble: str, lists: bool, tmp_path: Path) -> None:
    mended = mixed(tmp_path, {NAME + garble: FP8}, lists=lists)
    assert [fix.safety for fix in garbled(mended)] == [Safety.EXACT] * 2
    assert "CFG108" not in {f.code for f in mended.after.findings}
    assert [table[NAME] for table in tables(tmp_path)] == [FP8, FP8]


def test_a_name_that_is_there_with_the_same_value_goes(tmp_path: Path) -> None:
    mended = mixed(tmp_path, {NAME: FP8, f"{NAME} ": FP8, f" {NAME}": FP8})
    assert not mended.built.left
    assert not {f.code for f in mended.after.findings} & {"CFG108", "FIL113"}
    assert all(list(table).count(NAME) == 1 and NAME + " " not in table for table in tables(tmp_path))


def test_a_name_that_is_there_with_another_value_is_left(tmp_path: Path) -> None:
    mended = mixed(tmp_path, {NAME: FP8, f"{NAME} ": NVFP4})
    assert garbled(mended) == [None, None]
    assert [item.rule for item in mended.built.left] == ["CFG108", "CFG108"]
    assert "another value" in mended.built.left[0].reason
    assert not mended.plan.touched


def test_the_first_of_two_garbled_names_is_written(tmp_path: Path) -> None:
    mended = mixed(tmp_path, {f"{NAME}\0": FP8, f"{NAME} ": NVFP4})
    assert [fix.note for fix in garbled(mended)] == ["write 1 name without them"] * 2
    assert [(r.places, r.change) for r in mended.built.repairs] == [(1, f"1 name, the first becomes {NAME!r}")] * 2
    assert [item.places for item in mended.built.left] == [1, 1]
    assert all(table[NAME] == FP8 and table[f"{NAME} "] == NVFP4 for table in tables(tmp_path))


def test_an_entry_of_which_nothing_is_left_goes(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    before = json.loads(json.dumps([model.config, model.hf_quant]))
    for declared, key in zip(model.quantization(), ("ignore", "exclude_modules"), strict=True):
        declared[key] = ["\0", *declared[key], " "]  # "" is a part of every name
    mended = mend(model.write(tmp_path), EXACT, Depth.HEADERS)
    assert {r.change for r in mended.built.repairs} == {r"'\x00' and 1 more go"}
    files = [tmp_path / "config.json", tmp_path / "hf_quant_config.json"]
    assert [json.loads(file.read_text()) for file in files] == before


def test_a_stale_file_is_promised_nothing(tmp_path: Path) -> None:
    root = make("ct-nvfp4").write(tmp_path)
    stale = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head "]}}
    (root / "hf_quant_config.json").write_text(json.dumps(stale))
    mended = mend(root, EXACT, Depth.HEADERS)
    assert garbled(mended) == [None]
    assert "stale" in mended.built.left[0].reason
    assert not mended.plan.touched
