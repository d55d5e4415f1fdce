"""A comparison as text and as files, and the exit code it deserves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter

import pandas as pd
import pytest

from quant.distance import Distance
from quant.metrics import ErrorSums
from repair.distance_pairs import Unmatched
from repair.distance_result import Comparison, TensorDistance, WorstBlock
from reports import comparefiles, tables
from reports import comparetext as text
from reports.comparison import DISTANCES, FORMATS, SORTS, Ranking
from reports.layout import cells, plain
from reports.report import Exit

NAME = "model.layers.{}.mlp.down_proj.weight"


def row(at: int, squared: float, **more: object) -> TensorDistance:
    """A quantised tensor of 64 weights of energy 64 whose squared errors add up to ``squared``."""
    sums = ErrorSums(64, squared, 64.0, 64.0, 64.0 - squared / 2, math.sqrt(squared))
    exact = 4 if squared == 0 else 1
    found = Distance(sums, blocks=4, exact=exact, **{k: more.pop(k) for k in ("broken", "incomparable") if k in more})
    name = str(more.get("tensor", NAME.format(at)))
    block = WorstBlock(squared, name, 0, (3, 4), (16, 32), "a.safetensors", 1234 + at, 0.5)
    fields = {
        "tensor": name, "shard": "a.safetensors", "expert": None, "sources": (name,), "format": "modelopt-nvfp4",
        "source_format": "BF16", "experts": 1, "rows": 4, "columns": 16, "quantised": True, "found": found,
        "worst": (block,) if squared else (),
    }  # fmt: skip
    return TensorDistance(**(fields | more))


ROWS = (row(0, 0.64), row(1, 6.4), row(2, 0.0), row(3, 0.064))
LEFT = tuple(Unmatched("B", f"x.{i}.bias", f"x.{i}.bias: not there") for i in range(3))
FOUND = Comparison("one", "two", ROWS, LEFT, (), Counter({"KV-cache scales": 2}), 12345)
BROKEN = row(4, math.nan, broken=16)


def lines(ranking: Ranking, width: int | None = None, limit: int | None = None) -> list[str]:
    return [plain(line) for line in text.table(ranking, width, limit)]


def test_the_worst_come_first():
    order = {sort: [t.tensor for t in Ranking(FOUND, sort=sort).rows] for sort in SORTS}
    by_error = [NAME.format(i) for i in (1, 0, 3, 2)]
    for sort in ("sqnr", "mse", "max", "cosine"):
        assert order[sort] == by_error
    assert order["file"] == order["name"] == [NAME.format(i) for i in range(4)]
    assert order["exact"][-1] == NAME.format(2)
    with_nan = Comparison("one", "two", (*ROWS, BROKEN), (), ())
    for sort in ("sqnr", "mse", "max"):
        assert Ranking(with_nan, sort=sort).rows[0] is BROKEN


@pytest.mark.parametrize(
    ("max_mse", "min_sqnr", "failing"),
    [(None, None, 0), (0.1, None, 0), (0.0999, None, 1), (0.01, None, 1), (0.0, None, 3), (None, 10.0, 0),
     (None, 10.01, 1), (None, 25, 2), (None, math.inf, 3), (0.05, 25, 2)],
)  # fmt: skip
def test_limits(max_mse, min_sqnr, failing):
    ranking = Ranking(FOUND, max_mse, min_sqnr)
    assert len(ranking.failing) == failing
    assert ranking.exit_code() == (Exit.FINDINGS if failing else Exit.CLEAN)


def test_exit_codes():
    assert Ranking(FOUND).exit_code(strict=True) == Exit.UNCHECKED
    whole = Comparison("one", "two", ROWS, (), ())
    assert Ranking(whole).exit_code(strict=True) == Exit.CLEAN
    assert Ranking(Comparison("one", "two", (*ROWS, BROKEN), (), ())).exit_code() == Exit.FINDINGS
    assert Ranking(Comparison("one", "two", (*ROWS, BROKEN), (), ()), 1e9, -1e9).exit_code() == Exit.FINDINGS
    assert Ranking(Comparison("one", "two", (), LEFT, ())).exit_code() == Exit.UNCHECKED
    assert Ranking(Comparison("one", "two", ROWS, (), LEFT), 0.0).exit_code() == Exit.UNCHECKED
    none = row(0, 0.0, found=Distance(ErrorSums(), 4, 0, 0, 64, 0))
    assert Ranking(Comparison("one", "two", (none,), (), ())).exit_code() == Exit.UNCHECKED
    some = row(0, 0.0, incomparable=3)
    assert Ranking(Comparison("one", "two", (some,), (), ())).exit_code() == Exit.CLEAN
    assert Ranking(Comparison("one", "two", (some,), (), ())).exit_code(strict=True) == Exit.UNCHECKED


def test_table_as_text():
    shown = lines(Ranking(FOUND, max_mse=0.05))
    assert shown[0].split() == ["SQNR", "dB", "MSE", "MAX", "COSINE", "EXACT", "TENSOR"]
    assert shown[1].split() == ["10.00", "##", "0.1", "2.53", "0.95000", "25.0", "%", NAME.format(1)]
    assert shown[4].split() == ["exact", "##########", "0", "0", "1.00000", "100", "%", NAME.format(2)]
    whole = "\n".join(shown)
    assert (
        "error 6.4, scale 0.5  " + NAME.format(1) + "  row 3, columns 16..31; scale at byte 1235 of a.safetensors"
        in whole
    )
    assert "4 tensors compared; 1 fails: MSE above 0.05." in whole
    assert "256 quantised weights: SQNR 15.57 dB" in whole
    assert "7 of 16 blocks exact" in whole
    assert "B: 3 tensors: it: not there (first: x.0.bias)" in whole
    assert "2 KV-cache scales" in whole
    assert "12.3 kB of both sides" in whole


@pytest.mark.parametrize("width", [40, 60, 80, 109, 110, 160])
def test_the_table_fits_the_terminal(width):
    name = "model.language_model.layers.17.mlp.experts.127.gate_up_proj.weight_packed"
    found = Comparison("one", "two", (*ROWS, BROKEN, row(5, 1e-5, tensor=name)), LEFT, LEFT)
    for line in lines(Ranking(found, 0.1, 20.0), width):
        assert cells(line) <= max(width, 62), line


def test_limit_and_names():
    assert "... and 2 more tensors (--limit 0 lists all)" in lines(Ranking(FOUND), None, 2)
    names = [plain(line) for line in text.names(Ranking(FOUND, max_mse=0.05))]
    assert names == [NAME.format(1)]
    assert [plain(line) for line in text.names(Ranking(FOUND, max_mse=1.0))] == []
    assert len(list(text.names(Ranking(FOUND)))) == 3


def test_a_histogram_of_many():
    found = Comparison("one", "two", tuple(row(i, 64 / 10 ** (2 + i / 40)) for i in range(40)), (), ())
    shown = lines(Ranking(found))
    at = shown.index("Tensors by SQNR")
    counts = [int(line.split()[-1]) for line in shown[at + 1 :][: shown[at + 1 :].index("")]]
    assert sum(counts) == 40
    assert len(counts) <= 8


def test_all_exact_and_nothing():
    assert "1 tensor compared; all are exact." in lines(Ranking(Comparison("one", "two", (ROWS[2],), (), ())))
    assert "Nothing could be compared." in lines(Ranking(Comparison("one", "two", (), LEFT, ())))


def test_json():
    found = Comparison("one", "two", (*ROWS, BROKEN), LEFT, (), Counter({"buffers": 1}), 5)
    ranking = Ranking(found, max_mse=0.05)
    told = json.loads(comparefiles.content("json", ranking))
    assert told["schema_version"] == 1
    assert (told["a"], told["b"]) == ("one", "two")
    assert [t["tensor"] for t in told["tensors"]] == [t.tensor for t in ranking.rows]
    first, last = told["tensors"][0], told["tensors"][-1]
    assert (first["mse"], first["sqnr"], first["failed"], first["broken"]) == ("nan", "nan", True, 16)
    assert (last["mse"], last["sqnr"], last["failed"], last["exact_blocks"]) == (0, "inf", False, 4)
    block = told["tensors"][1]["worst"][0]
    assert (block["offset"], block["rows"], block["columns"], block["scale"]) == (1235, [3, 4], [16, 32], 0.5)
    assert told["unmatched"][0] == {"side": "B", "tensor": "x.0.bias", "reason": "x.0.bias: not there"}
    assert told["summary"]["failed"] == 2
    assert told["summary"]["ignored"] == {"buffers": 1}
    kinds = [json.loads(line)["type"] for line in str(comparefiles.content("jsonl", ranking)).splitlines()]
    assert Counter(kinds) == {"tensor": 5, "unmatched": 3, "summary": 1}
    assert kinds[-1] == "summary"


def test_csv_pandas_and_parquet():
    ranking = Ranking(Comparison("one", "two", (*ROWS, BROKEN, row(9, 1.0, tensor="=1+1", expert=3)), (), ()))
    read = list(csv.DictReader(io.StringIO(str(comparefiles.content("csv", ranking)))))
    assert list(read[0]) == list(DISTANCES)
    assert (read[0]["mse"], read[0]["expert"], read[0]["failed"]) == ("nan", "", "True")
    assert {r["tensor"] for r in read} >= {"'=1+1"}
    frame = tables.distances(ranking)
    assert dict(frame.dtypes) == {name: pd.Series(dtype=dtype).dtype for name, dtype in DISTANCES.items()}
    assert list(frame.tensor) == [t.tensor for t in ranking.rows]
    assert math.isnan(frame.mse.to_numpy()[0])
    assert not frame.mse.isna()[1:].any()
    assert list(tables.distances(FOUND).tensor) == [t.tensor for t in Ranking(FOUND).rows]
    again = pd.read_parquet(io.BytesIO(comparefiles.content("parquet", ranking)))  # type: ignore[arg-type]
    assert list(again.columns) == list(DISTANCES)
    assert len(tables.distances(Comparison("one", "two", (), (), ()))) == 0


def test_markdown():
    shown = str(comparefiles.content("markdown", Ranking(FOUND, max_mse=0.05)))
    assert shown.startswith("## `two` against `one`\n")
    assert f"| `{NAME.format(1)}` | 10.00 | 0.1 | 2.53 | 0.95000 | 25.0 % |" in shown


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_names(name):
    evil = row(0, 1.0, tensor="a\x1b[31m\u202e|`<b>\n")
    ranking = Ranking(Comparison("\x1b]0;x", "b\r", (evil,), (Unmatched("A", "\x9b", "\u202ewhy"),), ()))
    out = comparefiles.content(name, ranking)
    if isinstance(out, str):
        assert not {"\x1b", "\u202e", "\r", "\x9b"} & set(out)


def test_every_format_says_the_same_number_of_rows():
    ranking = Ranking(FOUND, limit=2)
    assert len(json.loads(comparefiles.content("json", ranking))["tensors"]) == 2
    assert len(str(comparefiles.content("csv", ranking)).splitlines()) == 3
    with pytest.raises(ValueError, match="unknown"):
        comparefiles.content("sarif", ranking)


def test_a_total_over_the_finite_tensors():
    """One NaN does not hide what the others are."""
    found = Comparison("one", "two", (*ROWS, BROKEN), (), ())
    assert found.total == Comparison("one", "two", ROWS, (), ()).total
    shown = "\n".join(lines(Ranking(found)))
    assert "256 quantised weights: SQNR 15.57 dB" in shown
    assert "over 4 finite tensors; 1 tensor not finite on one side is in no sum" in shown
    summary = json.loads(comparefiles.content("json", Ranking(found)))["summary"]
    assert (summary["count"], summary["broken_tensors"], summary["broken"]) == (256, 1, 16)
    alone = Comparison("one", "two", (BROKEN,), (), ())
    assert math.isnan(alone.total.sums.mse)
    assert "the only tensor is not finite on one side: no sum is a number" in "\n".join(lines(Ranking(alone)))
    assert "not finite" not in "\n".join(lines(Ranking(FOUND)))
