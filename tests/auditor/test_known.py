"""A scan of what was changed since, against a scan of everything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.audit import Depth
from auditor.context import Context
from auditor.engine import examine
from auditor.known import Known
from tests.forge import make
from tests.repair.mending import expect_same

LAYOUT = "modelopt-nvfp4"
Changed = dict[str, list[tuple[int, int]]]
SETTINGS = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def poke(path: Path, at: int, new: bytes, keep_time: bool = False) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)
    times = (before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 10**9))
    os.utime(path, ns=times)


def first(root: Path, shards: int = 1, depth: Depth = Depth.FULL) -> tuple[Context, Callable[[Changed], Known]]:
    make(LAYOUT).write(root, shards)
    ctx, audit = examine(root, depth=depth)
    ctx.close()
    return ctx, lambda changed: Known.since(ctx, audit.findings, changed)


def again(root: Path, known: Known) -> int:
    """Bytes that were read."""
    audit = examine(root, depth=Depth.FULL, known=known)[1]
    expect_same(examine(root, depth=Depth.FULL)[1], audit)
    return audit.bytes_read


@SETTINGS
@given(st.data(), st.sampled_from((1, 2)))
def test_only_what_was_written_is_measured_again(tmp_path_factory, data: st.DataObject, shards: int) -> None:
    root = tmp_path_factory.mktemp("known")
    ctx, known = first(root, shards)
    changed: Changed = {}
    for ref in data.draw(st.lists(st.sampled_from(sorted(ctx.checkpoint.tensors.values())), max_size=3, unique=True)):
        at = data.draw(st.integers(ref.start, ref.start + ref.nbytes - 1))
        end = data.draw(st.integers(at + 1, min(at + 40, ref.start + ref.nbytes)))
        poke(root / ref.shard, at, data.draw(st.sampled_from((b"\x7f", b"\x00", b"\xff"))) * (end - at))
        changed.setdefault(ref.shard, []).append((at, end))
    full = examine(root, depth=Depth.FULL)[1].bytes_read
    assert again(root, known({name: sorted(spans) for name, spans in changed.items()})) < full


def test_a_shard_that_nobody_meant_to_write_is_measured_whole(tmp_path: Path) -> None:
    ctx, known = first(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    ref = next(ref for ref in ctx.checkpoint.tensors.values() if ref.name.endswith("weight_scale"))
    poke(path, ref.start, b"\x7f")
    again(tmp_path, known({}))


def test_another_file_in_its_place_is_measured_whole(tmp_path: Path) -> None:
    ctx, known = first(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    ref = next(ref for ref in ctx.checkpoint.tensors.values() if ref.name.endswith("weight_scale"))
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)
    poke(path, ref.start, b"\x7f", keep_time=True)
    again(tmp_path, known({path.name: [(ref.start + 1, ref.start + 2)]}))


def test_another_depth_measures_anew(tmp_path: Path) -> None:
    _, known = first(tmp_path, depth=Depth.SCALARS)
    again(tmp_path, known({}))


def test_a_file_that_was_changed_meanwhile_is_looked_at_by_all_rules(tmp_path: Path) -> None:
    _, known = first(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["nothing.like.it"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "more.safetensors").write_bytes(bytes(4))
    again(tmp_path, known({}))
    codes = {finding.code for finding in examine(tmp_path, depth=Depth.FULL, known=known({}))[1].findings}
    assert {"FIL109", "CFG103"} & codes


@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "ct-nvfp4"])
def test_a_copy_that_is_none_any_more_is_looked_at_again(layout: str, tmp_path: Path) -> None:
    """A tied head stored as a copy of the embedding, of which one byte is changed: information becomes a warning."""
    model = make(layout).copy()
    embedding = next(name for name in model.tensors if name.endswith("embed_tokens.weight"))
    model.tensors["lm_head.weight"] = model.tensors[embedding]
    model.config["tie_word_embeddings"] = True
    model.write(tmp_path)
    ctx, audit = examine(tmp_path, depth=Depth.FULL)
    head = ctx.checkpoint.tensors["lm_head.weight"]
    poke(tmp_path / head.shard, head.start, bytes([1, 2]))
    again(tmp_path, Known.since(ctx, audit.findings, {head.shard: [(head.start, head.start + 2)]}))
    ctx.close()
