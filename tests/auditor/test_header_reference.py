"""The header reader against the reference reader: what that one reads is sound, what it refuses is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from auditor.header import Flaw, Header, parse
from auditor.tensorref import DTYPE_BITS
from tests.auditor.shards import entries, file_bytes, sound


def read(raw: bytes) -> Header:
    length = int.from_bytes(raw[:8], "little")
    return parse(raw[: 8 + min(length, len(raw))], "shard", len(raw))


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 3), max_size=3).map(lambda s: [8, *s])),
    max_size=4,
)
# What is refused here and accepted there, on purpose (FIL101, FIL104 say so), as patterns of messages.
STRICTER = re.compile(
    r"occurs twice"  # equal names: the reference lets the last one win
    r"|0x5B where '\{'|0x7B where a string"  # entries written as arrays, a dtype written as an object
    r"|more than 64 numbers|nested too deeply|bytes under keys|a name of"
)


def reference_accepts(path: Path, raw: bytes) -> bool:
    path.write_bytes(raw)
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except SafetensorError:
        return False
    return True


def agree(path: Path, raw: bytes) -> None:
    header = read(raw)
    serious = [p for p in header.problems if p.flaw is not Flaw.FOREIGN]
    if reference_accepts(path, raw):
        assert all(STRICTER.search(p.message) for p in serious), serious
    else:
        assert serious or not raw


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference") / "shard.safetensors"


SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@SLOW
@given(tensors=TENSORS, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), pad=st.integers(0, 9))
def test_what_the_reference_reads_is_sound(
    scratch: Path, tensors: dict[str, Any], indent: int | None, ascii_only: bool, pad: int
) -> None:
    table = entries(tensors)
    size = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    text = json.dumps({"__metadata__": {"k": "v"}} | table, indent=indent, ensure_ascii=ascii_only) + " " * pad
    raw = file_bytes(text.encode(), bytes(size))
    assert reference_accepts(scratch, raw)
    header = read(raw)
    assert not header.problems
    assert {r.name: (r.dtype, list(r.shape)) for r in header.tensors} == tensors


@settings(SLOW, max_examples=400)
@given(
    tensors=TENSORS,
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from("sid")), min_size=1, max_size=3),
)
@example(tensors={}, edits=[(8, 0x5B, "s")])
def test_mutated_bytes_are_judged_as_the_reference_judges_them(
    scratch: Path, tensors: dict[str, Any], edits: list[tuple[int, int, str]]
) -> None:
    raw = bytearray(sound(tensors))
    for at, byte, how in edits:
        at %= len(raw)
        raw[at : at + (how != "i")] = b"" if how == "d" else bytes([byte])
    agree(scratch, bytes(raw))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 9), st.sampled_from([2**63, 2**64 - 1, 2**64, 10**30, 0.5, 4.0]),
    st.sampled_from(["U8", "F4", "F32", "I4", ""]),
)  # fmt: skip
JSON = st.recursive(SCALARS, lambda j: st.lists(j, max_size=3) | st.dictionaries(NAMES, j, max_size=2), max_leaves=4)
KEYS = st.sampled_from(["dtype", "shape", "data_offsets", "x"])


@settings(SLOW, max_examples=400)
@given(data=st.data(), tensors=TENSORS, changes=st.integers(1, 2))
def test_mutated_json_is_judged_as_the_reference_judges_it(
    scratch: Path, data: st.DataObject, tensors: dict[str, Any], changes: int
) -> None:
    table: dict[str, Any] = {"__metadata__": {"k": "v"}} | entries(tensors)
    for _ in range(changes):
        name = data.draw(st.sampled_from(sorted(table)))
        if data.draw(st.booleans()):
            table[name] = data.draw(JSON)
        elif isinstance(table[name], dict):
            table[name] = table[name] | {data.draw(KEYS): data.draw(JSON)}
        assume(table)
    size = data.draw(st.integers(-1, 1)) + sum(_end(entry) for entry in [*entries(tensors).values()][-1:])
    agree(scratch, file_bytes(table, bytes(max(0, size))))


def _end(entry: dict[str, Any]) -> int:
    return int(entry["data_offsets"][1])
