"""A plan comes back from its file as it was; anything else in the file is refused, naming the entry."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import RepairError
from repair import planfile
from repair.apply import apply
from repair.content import digest, piece_of
from repair.patch import Plan, Skipped, plan_for
from tests.repair.plans import CONFIG_TEXT, GONE, MADE, A, B, Case, cases

CASE = Case({A: [(1, 2)], B: [(3, 4), (200, 300)]}, {A: 64, B: 6000}, [CONFIG_TEXT, MADE, GONE])
SKIPPED = (Skipped("SCL102", "w", "needs \N{LATIN SMALL LETTER E WITH ACUTE} source"),)


def known(plan: Plan) -> list[object]:
    flat = []
    for p in plan.patches:
        for at in range(p.length):
            flat.append((p.file, p.offset + at, piece_of(p.old, at, 1), piece_of(p.new, at, 1), p.rule, p.safety))
    return [flat, plan.texts, plan.skipped, plan.files]


@pytest.mark.parametrize("name", cases())
def test_every_plan_comes_back(tmp_path, name):
    case = cases()[name]
    root = case.on_disk(tmp_path / "model")
    plan = case.plan(root)
    planfile.save(plan, tmp_path / "plan.json")
    back = planfile.load(tmp_path / "plan.json")
    if plan.nbytes < 1 << 16:
        assert known(back) == known(plan)
    assert back.touched == plan.touched
    assert back.rules.keys() == plan.rules.keys()
    apply(root, back)
    assert {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()} == case.after()
    with pytest.raises(RepairError, match=r"plan\.json: cannot be made: File exists"):
        planfile.save(plan, tmp_path / "plan.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("saved")
    root = CASE.on_disk(folder / "model")
    planfile.save(plan_for(root, CASE.patches, CASE.texts, SKIPPED), folder / "plan.json")
    return json.loads((folder / "plan.json").read_text())


def test_shape_of_the_file(saved):
    assert list(saved) == ["schema_version", "files", "patches", "texts", "skipped"]
    assert saved["schema_version"] == 1
    keys = {"file", "tensor", "offset", "length", "old", "new", "sha256", "rule", "reason", "safety"}
    assert set(saved["patches"][0]) == keys
    assert saved["patches"][0]["old"].startswith("hex:")
    assert saved["patches"][2]["old"].startswith("base64:")
    assert saved["files"][A].keys() == {"size", "mtime_ns", "header_sha256", "data_start"}
    assert saved["skipped"][0]["reason"] == SKIPPED[0].reason


@pytest.mark.parametrize("indent", [None, 2])
def test_written_by_another_program(saved, tmp_path, indent):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(dict(reversed(saved.items())), indent=indent))
    root = CASE.on_disk(tmp_path / "model")
    apply(root, planfile.load(path))
    assert {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()} == CASE.after()


SPOILT = {
    "other bytes": (("patches", 0, "new"), "hex:0000", r"patches\[0\]: its bytes are not those of its sha256"),
    "other length": (("patches", 1, "length"), 3, r"patches\[1\]: at offset \d+: 4 old and 4 new bytes"),
    "no number": (("patches", 1, "offset"), "12", r"patches\[1\]: offset is not a whole number"),
    "truth": (("patches", 1, "offset"), True, r"patches\[1\]: offset is not a whole number"),
    "negative": (("patches", 1, "offset"), -1, r"patches\[1\]: offset is not a whole number"),
    "huge": (("patches", 1, "offset"), 1 << 70, r"patches\[1\]: offset is not a whole number"),
    "in the header": (("patches", 1, "offset"), 8, "lies in the header"),
    "past the end": (("patches", 1, "offset"), 10**6, "past the end"),
    "overlap": (("patches", 2, "offset"), 80, "overlaps the patch of w"),
    "unknown file": (("patches", 0, "file"), "c.safetensors", "does not say what the file was"),
    "escape": (("patches", 0, "file"), "../a.safetensors", "does not say what the file was"),
    "not hex": (("patches", 0, "old"), "hex:zz", r"patches\[0\]: old: "),
    "not base64": (("patches", 2, "old"), "base64:!!", r"patches\[2\]: old: "),
    "no coding": (("patches", 0, "old"), "0102", r"patches\[0\]: old: neither hex: nor base64:"),
    "safety": (("patches", 0, "safety"), "surely", r"patches\[0\]: safety 'surely' is unknown"),
    "rule": (("patches", 0, "rule"), 7, r"patches\[0\]: rule is not a string"),
    "surrogate": (("patches", 0, "tensor"), "\ud800", r"patches\[0\]: .*surrogates"),
    "text outside": (("texts", 0, "file"), "../../etc/passwd", "not a file name inside the folder"),
    "text hidden": (("texts", 0, "file"), ".audit", "not a file name inside the folder"),
    "text shard": (("texts", 0, "file"), A, "a shard is patched, never replaced"),
    "text twice": (("texts", 1, "file"), "config.json", "replaced twice"),
    "nothing to nothing": (("texts", 1, "old"), None, r"texts\[1\]: its bytes are not those"),
    "version": (("schema_version",), 2, "schema_version 2; this program knows 1"),
    "no entry": (("patches", 0), 5, "an entry is not an object"),
    "no list": (("patches",), {}, r"expected '\['"),
    "files": (("files",), [], "files: not an object"),
    "file": (("files", A), 3, r"files: 'a\.safetensors' is not an object"),
    "size": (("files", A, "size"), None, "files: size is not a whole number"),
    "start": (("files", A, "data_start"), 3, "its data cannot begin at offset 3"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_file(saved, tmp_path, name):
    keys, value, match = SPOILT[name]
    content = json.loads(json.dumps(saved))
    at = content
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RepairError, match=match):
        planfile.load(path)


@pytest.mark.parametrize("key", ["file", "offset", "old", "sha256", "safety", "length"])
def test_missing_key(saved, tmp_path, key):
    content = json.loads(json.dumps(saved))
    del content["patches"][1][key]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RepairError, match=rf"patches\[1\]: '{key}' is missing"):
        planfile.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", '{"schema_version": 1', '{"schema_version": 1} x', '{"a": 1, "a": 2}', "\xff", "nul",
     '{"schema_version": 1, "patches": [{"a": 1, "a": 2}]}', "[" * 100_000, '{"x": ' + "[" * 100_000,
     '{"schema_version": 1e400}', '{"schema_version": NaN}', '{"schema_version": true}', "{1: 2}"],
)  # fmt: skip
def test_not_a_plan(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RepairError, match=r"plan\.json: "):
        planfile.load(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_refused_or_harmless(saved, tmp_path_factory, data):
    raw = bytearray(json.dumps(saved, indent=1).encode())
    path = tmp_path_factory.mktemp("any") / "plan.json"
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    try:
        plan = planfile.load(path)
    except RepairError as error:
        assert "plan.json: " in str(error)  # noqa: PT017  # any of many messages, or none
    else:
        assert set(plan.touched) <= {A, B, *(t.file for t in plan.texts)}


def test_long_plan_is_read_in_pieces(tmp_path):
    """Eight megabytes of one tensor: no entry is longer than one, and the bytes wait in a scratch file."""
    raw = random.Random(0).randbytes(8 << 20)
    case = Case({A: [(0, 8 << 20)]}, {A: 8 << 20})
    root = case.on_disk(tmp_path / "model")
    plan = case.plan(root)
    planfile.save(plan, tmp_path / "plan.json")
    back = planfile.load(tmp_path / "plan.json")
    assert [p.length for p in back.patches] == [1 << 20] * 8
    assert not any(isinstance(p.new, bytes) for p in back.patches)
    assert "".join(digest(p.old) for p in back.patches[:1]) != ""
    assert len(raw) == back.nbytes
    apply(Path(root), back)
    assert (root / A).read_bytes() == case.after()[A]
