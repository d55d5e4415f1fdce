"""Comparing two checkpoints, against float64 arithmetic that shares no line with the tool."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant import mx_to_nv
from quant.errors import CheckpointError
from repair import distance, distance_read
from repair.distance import compare_checkpoints
from repair.distance_result import Comparison, TensorDistance
from tests import dequantised, forge
from tests.layouts import LAYOUTS
from tests.modelled import ARCHITECTURES
from tests.raw import Raw, raw, shard_bytes

NUMBERS = sorted(n for n in LAYOUTS if not n.startswith("int-"))
PLAIN = [n for n in NUMBERS if "svd" not in n]
LLAMA = [n for n in PLAIN if LAYOUTS[n].architecture == "llama"]
CLOSE = 1e-5  # the tool rounds weights to float32, the oracle does not


def floats(name: str) -> dict[str, Raw]:
    """The unquantised checkpoint of a layout: its weights before they were encoded, in BF16."""
    arch = ARCHITECTURES[LAYOUTS[name].architecture]
    model = forge.make(name)
    plain = {n: t for n, t in model.tensors.items() if n in dict(arch.plain)}
    return plain | {x.plain_name: raw("BF16", forge._weight(name, x)) for x in arch.linears}


def folder(root: Path, tensors: dict[str, Raw], config: str = "{}") -> str:
    root.mkdir(parents=True)
    (root / "model.safetensors").write_bytes(shard_bytes(tensors))
    (root / "config.json").write_text(config)
    return str(root)


def source(root: Path, name: str) -> str:
    kind = ARCHITECTURES[LAYOUTS[name].architecture].config["model_type"]
    return folder(root, floats(name), f'{{"model_type": "{kind}"}}')


def by_name(found: Comparison) -> dict[str, TensorDistance]:
    return {t.tensor: t for t in found.tensors}


def check(found: TensorDistance, a: np.ndarray, b: np.ndarray, block: tuple[int, int]) -> None:
    """One row against float64 arrays [E, N, K]."""
    d = a - b
    assert found.sums.count == d.size
    assert (found.experts, found.rows, found.columns) == d.shape
    assert found.sums.mse == pytest.approx((d * d).mean(), rel=CLOSE, abs=1e-14)
    assert found.sums.largest == pytest.approx(np.abs(d).max(), rel=CLOSE, abs=1e-7)
    wanted = 10 * math.log10((a * a).sum() / (d * d).sum()) if d.any() else math.inf
    assert found.sums.sqnr == pytest.approx(wanted, abs=1e-3) or found.sums.sqnr > 120
    cosine = (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
    assert found.sums.cosine == pytest.approx(cosine, abs=1e-7)
    high, wide = block
    grid = [(e, r, c) for e in range(len(d)) for r in range(0, d.shape[1], high) for c in range(0, d.shape[2], wide)]
    errors = {(e, r, c): float((d[e, r : r + high, c : c + wide] ** 2).sum()) for e, r, c in grid}
    assert found.found.blocks == len(errors)
    for spot in found.worst:
        assert spot.error == pytest.approx(errors[spot.expert, spot.rows[0], spot.columns[0]], rel=1e-4, abs=1e-12)
    if found.worst:
        assert found.worst[0].error == pytest.approx(max(errors.values()), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_every_layout_against_its_source(tmp_path, name):
    model = forge.make(name)
    a, b = source(tmp_path / "a", name), str(model.write(tmp_path / "b", shards=2))
    found = compare_checkpoints(a, b)
    assert not found.unread
    assert not found.unmatched
    rows = by_name(found)
    assert rows.keys() == {m.codes for m in model.layers} | {
        n for n, t in model.tensors.items() if t.dtype == "BF16" and not _is_part(n)
    }
    for made in model.layers:
        arch = next(x for x in ARCHITECTURES[LAYOUTS[name].architecture].linears if x.name == made.name)
        values, block = dequantised.layer(made, model.tensors)
        want = floats(name)[arch.plain_name].values()
        check(rows[made.codes], want.reshape(values.shape), values * dequantised.gain(made, model.tensors), block)
        assert rows[made.codes].quantised
    for t in found.tensors:
        if not t.quantised:
            assert t.sums.mse == 0
            assert t.found.exact == t.found.blocks
    # The other way round: the same differences, the other side's blocks.
    back = by_name(compare_checkpoints(b, a))
    assert len(back) == len(rows)
    for made in model.layers:
        arch = next(x for x in ARCHITECTURES[LAYOUTS[name].architecture].linears if x.name == made.name)
        mine, other = rows[made.codes].sums, back[arch.plain_name].sums
        assert (mine.mse, mine.largest) == (pytest.approx(other.mse, rel=1e-12), other.largest)


def _is_part(name: str) -> bool:
    return "scale" in name or "svdquant" in name


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.tuples(st.sampled_from(LLAMA), st.sampled_from(LLAMA)))
def test_any_two_layouts(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("two")
    one, other = (forge.make(n) for n in names)
    a, b = str(one.write(root / "a")), str(other.write(root / "b", shards=3))
    found = compare_checkpoints(a, b)
    assert not found.unread
    assert not found.unmatched
    rows, theirs = by_name(found), {m.name: m for m in one.layers}
    for made in other.layers:
        values, block = dequantised.layer(made, other.tensors)
        match = theirs.get(made.name)
        if match is None:
            want = one.tensors[f"{made.name}.weight"].values()[None]
        else:
            want = dequantised.layer(match, one.tensors)[0] * dequantised.gain(match, one.tensors)
        check(rows[made.codes], want, values * dequantised.gain(made, other.tensors), block)


@pytest.mark.parametrize("name", PLAIN)
def test_a_checkpoint_and_itself(tmp_path, name):
    path = str(forge.make(name).write(tmp_path / "b", shards=2))
    found = compare_checkpoints(path, path)
    assert found.tensors
    assert not found.unmatched
    for t in found.tensors:
        assert (t.sums.mse, t.sums.largest, t.sums.sqnr) == (0, 0, math.inf)
        assert (t.found.exact, t.worst, t.sources) == (t.found.blocks, (), (t.tensor,))
        assert t.sums.cosine == pytest.approx(1, abs=1e-15)
    assert found.total.sums.mse == 0


def test_pieces_threads_and_experts_add_up(tmp_path, monkeypatch):
    """However the work is cut, the counts are the same, the sums but for their last bits; a cut is repeatable."""
    for name in ("modelopt-3d-gpt-oss", "gpt-oss-mxfp4", "modelopt-fp8-block", "ct-nvfp4-moe"):
        a, b = source(tmp_path / name / "a", name), str(forge.make(name).write(tmp_path / name / "b"))
        whole = compare_checkpoints(a, b, jobs=1)
        apart = compare_checkpoints(a, b, per_expert=True)
        monkeypatch.setattr(distance_read, "PIECE", 1000)
        monkeypatch.setattr(distance_read, "WIDE", 1000)
        monkeypatch.setattr(distance, "MEMORY", 1 << 16)
        cut = compare_checkpoints(a, b, jobs=4)
        assert cut == compare_checkpoints(a, b, jobs=1)
        monkeypatch.undo()
        for one, other in zip(whole.tensors, cut.tensors, strict=True):
            assert one.found.blocks == other.found.blocks
            assert one.found.exact == other.found.exact
            assert one.sums.mse == pytest.approx(other.sums.mse, rel=1e-12)
            assert one.sums.largest == other.sums.largest
            spots = [
                [(w.tensor, w.expert, w.rows, w.columns, w.offset, w.scale) for w in t.worst] for t in (one, other)
            ]
            assert spots[0] == spots[1]
            experts = [t for t in apart.tensors if t.tensor == one.tensor]
            assert len(experts) == (one.experts if one.experts > 1 else 1)
            assert sum(t.found.blocks for t in experts) == one.found.blocks
            assert sum(t.sums.squared for t in experts) == pytest.approx(one.sums.squared, rel=1e-12)


@pytest.mark.parametrize("name", [n for n in PLAIN if n not in ("modelopt-awq",)])
def test_the_worst_block_is_where_the_damage_is(tmp_path, name):
    """One scale is made large: the worst block lies under it, and its offset is that byte."""
    model = forge.make(name).copy()
    made = model.layers[-1]
    scales = model.tensors[made.scales]
    if scales.size == 1:
        return
    width = len(scales.data) // scales.size
    place = scales.size * 2 // 3
    new = {"F8_E4M3": b"\x7e", "U8": b"\x90", "F8_E8M0": b"\x90", "F32": b"\x00\x00\x80\x3f", "BF16": b"\x80\x3f"}
    a = str(forge.make(name).write(tmp_path / "a"))
    model.poke(made.scales, place * width, new[scales.dtype])
    b = model.write(tmp_path / "b")
    found = compare_checkpoints(a, str(b), worst=2)
    (block,) = found.worst(1)
    raw_file = (b / block.shard).read_bytes()
    assert block.tensor == made.codes
    assert raw_file[block.offset : block.offset + width] == new[scales.dtype]
    assert raw_file != (tmp_path / "a" / block.shard).read_bytes()
    assert block.offset == _start(b / block.shard, made.scales) + place * width
    values, _ = dequantised.layer(made, model.tensors)
    old, _ = dequantised.layer(made, forge.make(name).tensors)
    e, r, c = (int(x) for x in np.unravel_index(np.argmax(np.abs(values - old)), values.shape))
    assert block.expert == e
    assert block.rows[0] <= r < block.rows[1]
    assert block.columns[0] <= c < block.columns[1]
    assert block.scale is not None
    assert block.scale > 0


def _start(path: Path, tensor: str) -> int:
    import json

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length + json.loads(content[8 : 8 + length])[tensor]["data_offsets"][0]


# gpt-oss: one model in three layouts, weights and biases.


def _gpt_oss(root: Path) -> dict[str, str]:
    """MXFP4 as published, its exact NVFP4 cast apart by expert (compressed-tensors), and in modelopt's 3-D tensors."""
    rng = np.random.default_rng(7)
    at = "model.layers.0.mlp.experts"
    source_, apart, fused = {}, {}, {}
    for leaf, shape in (("gate_up_proj", (3, 96, 64)), ("down_proj", (3, 64, 64))):
        blocks = rng.integers(0, 256, (*shape[:2], shape[2] // 32, 16)).astype(np.uint8)
        scales = rng.integers(115, 130, (*shape[:2], shape[2] // 32)).astype(np.uint8)
        bias = rng.standard_normal(shape[:2]).astype(np.float32)
        stored = blocks.reshape(*shape[:2], -1)
        source_ |= {
            f"{at}.{leaf}_blocks": raw("U8", blocks),
            f"{at}.{leaf}_scales": raw("U8", scales),
            f"{at}.{leaf}_bias": raw("BF16", bias),
        }
        made = mx_to_nv.cast(mx_to_nv.Source(stored, scales)).quantised
        fused |= {
            f"{at}.{leaf}": raw("U8", made.stored.swapaxes(1, 2)),
            f"{at}.{leaf}_weight_scale": raw("F8_E4M3", made.scales.swapaxes(1, 2)),
            f"{at}.{leaf}_weight_scale_2": raw("F32", np.asarray(made.global_scale).reshape(())),
            f"{at}.{leaf}_bias": raw("BF16", bias),
        }
        parts = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
        for e in range(3):
            for part, rows in parts.items() if leaf == "gate_up_proj" else {"down_proj": slice(None)}.items():
                name = f"{at}.{e}.{part}"
                apart |= {
                    f"{name}.weight_packed": raw("U8", made.stored[e, rows]),
                    f"{name}.weight_scale": raw("F8_E4M3", made.scales[e, rows]),
                    f"{name}.weight_global_scale": raw("F32", 1 / np.asarray(made.global_scale).reshape(1)),
                    f"{name}.bias": raw("BF16", bias[e, rows]),
                }
    config = '{"model_type": "gpt_oss"}'
    every = {"mxfp4": source_, "apart": apart, "fused": fused}
    return {name: folder(root / name, tensors, config) for name, tensors in every.items()}


PAIRS = [(a, b) for a in ("mxfp4", "apart", "fused") for b in ("mxfp4", "apart", "fused")]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_gpt_oss_in_every_layout(tmp_path, one, other):
    paths = _gpt_oss(tmp_path)
    found = compare_checkpoints(paths[one], paths[other])
    assert not found.unmatched
    assert len(found.tensors) == (18 if other == "apart" else 4)
    for t in found.tensors:
        assert t.sums.squared == 0, t.tensor
        assert t.found.exact == t.found.blocks
    assert found.total.sums.count == 3 * (96 + 64) * 64
    biases = [t for t in found.tensors if not t.quantised]
    assert sum(t.sums.count for t in biases) == 3 * (96 + 64)


@pytest.mark.parametrize(("one", "other"), [p for p in PAIRS if p[0] != p[1]])
def test_gpt_oss_with_one_wrong_row(tmp_path, one, other):
    """Row 5 of gate_up of expert 1, an up row, is changed in B: only what holds it differs."""
    paths = _gpt_oss(tmp_path)
    file = Path(paths[other]) / "model.safetensors"
    content = bytearray(file.read_bytes())
    at = "model.layers.0.mlp.experts"
    if other == "mxfp4":
        name, start = f"{at}.gate_up_proj_blocks", (96 + 5) * 32
    elif other == "fused":
        name, start = f"{at}.gate_up_proj", 32 * 96 + 5
    else:
        name, start = f"{at}.1.up_proj.weight_packed", 2 * 32
    content[_start(file, name) + start] ^= 0x07
    file.write_bytes(bytes(content))
    found = compare_checkpoints(paths[one], paths[other])
    (wrong,) = [t for t in found.tensors if t.sums.squared]
    assert wrong.tensor == name
    assert wrong.found.exact == wrong.found.blocks - 1
    (block,) = wrong.worst
    assert (block.expert, block.rows) == ((0, (2, 3)) if other == "apart" else (1, (5, 6)))
    assert block.columns[0] == 0


def test_gpt_oss_in_bf16_as_published(tmp_path):
    """gate_up [E, H, 2I] and a square down [E, I, H], transposed, against every quantised layout and back."""
    paths = _gpt_oss(tmp_path)
    at = "model.layers.0.mlp.experts"
    rng = np.random.default_rng(1)
    up, down = (rng.standard_normal(s).astype(np.float32) for s in ((3, 64, 96), (3, 64, 64)))
    plain = folder(tmp_path / "bf16", {f"{at}.gate_up_proj": raw("BF16", up), f"{at}.down_proj": raw("BF16", down)})
    for name in paths:
        one, back = compare_checkpoints(paths[name], plain), compare_checkpoints(plain, paths[name])
        assert {t.tensor for t in one.tensors} == {f"{at}.gate_up_proj", f"{at}.down_proj"}
        assert one.total.sums.squared == pytest.approx(back.total.sums.squared, rel=1e-12)
        assert one.total.sums.product == pytest.approx(back.total.sums.product, rel=1e-12)
        assert {(u.side, "bias" in u.tensor) for u in one.unmatched} == {("A", True)}
    model = {n: Raw(t.dtype, t.shape, t.data) for n, t in _tensors(Path(paths["mxfp4"])).items()}
    scales = dequantised.e8m0(model[f"{at}.gate_up_proj_scales"].array())
    codes = dequantised.nibbles(model[f"{at}.gate_up_proj_blocks"].array().reshape(3, 96, 32))
    want = raw("BF16", up).values().swapaxes(1, 2) - codes * np.repeat(scales, 32, -1)
    row = by_name(compare_checkpoints(paths["mxfp4"], plain))[f"{at}.gate_up_proj"]
    assert row.sums.squared == pytest.approx((want**2).sum(), rel=1e-9)


def _tensors(root: Path) -> dict[str, Raw]:
    import json

    content = (root / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length :]
    return {n: Raw(h["dtype"], tuple(h["shape"]), data[slice(*h["data_offsets"])]) for n, h in header.items()}


def test_fused_projections_and_renamed_prefixes(tmp_path):
    rng = np.random.default_rng(2)
    at = "model.layers.0"
    parts = {f"{p}_proj": rng.standard_normal((n, 64)).astype(np.float32) for p, n in (("q", 48), ("k", 16), ("v", 16))}
    halves = {f"{p}_proj": rng.standard_normal((40, 64)).astype(np.float32) for p in ("gate", "up")}
    biases = {p: rng.standard_normal(len(w)).astype(np.float32) for p, w in parts.items()}
    apart = {f"{at}.self_attn.{p}.weight": raw("F32", w) for p, w in parts.items()}
    apart |= {f"{at}.self_attn.{p}.bias": raw("F32", w) for p, w in biases.items()}
    apart |= {f"{at}.mlp.{p}.weight": raw("F32", w) for p, w in halves.items()}
    other = "model.language_model.layers.0"
    fused = {
        f"{other}.self_attn.qkv_proj.weight": raw("F32", np.concatenate(list(parts.values()))),
        f"{other}.self_attn.qkv_proj.bias": raw("F32", np.concatenate(list(biases.values()))),
        f"{other}.mlp.gate_up_proj.weight": raw("F32", np.concatenate(list(halves.values()))),
    }
    one, two = folder(tmp_path / "a", apart), folder(tmp_path / "b", fused)
    for a, b in ((one, two), (two, one)):
        found = compare_checkpoints(a, b)
        assert not found.unmatched
        assert all(t.sums.squared == 0 and t.found.exact == t.found.blocks for t in found.tensors)
        assert sum(t.sums.count for t in found.tensors) == 80 * 64 + 80 + 80 * 64


def test_a_block_over_two_projections(tmp_path):
    """A fused FP8 weight whose 128 x 128 blocks hold rows of q, k and v."""
    rng = np.random.default_rng(3)
    from quant import fp8
    from quant.scheme import FP8_BLOCK

    at = "model.layers.0.self_attn"
    w = rng.standard_normal((320, 192)).astype(np.float32)
    q = fp8.quantise(w, FP8_BLOCK)
    fused = {f"{at}.qkv_proj.weight": raw("F8_E4M3", q.stored), f"{at}.qkv_proj.weight_scale_inv": raw("F32", q.scales)}
    cuts = {"q_proj": w[:160], "k_proj": w[160:240], "v_proj": w[240:]}
    a = folder(tmp_path / "a", {f"{at}.{n}.weight": raw("F32", x) for n, x in cuts.items()})
    b = folder(tmp_path / "b", fused)
    (row,) = compare_checkpoints(a, b).tensors
    check(row, w[None].astype(np.float64), q.weights()[None].astype(np.float64), (128, 128))
    assert row.sources == tuple(f"{at}.{n}.weight" for n in cuts)


# What cannot be compared.


def test_not_finite_on_one_side_and_on_both(tmp_path):
    model = forge.make("modelopt-nvfp4")
    hurt, twice = model.copy(), model.copy()
    made = model.layers[0]
    hurt.poke(made.scales, 3, b"\x7f")
    twice.poke(made.scales, 3, b"\x7f")
    twice.poke(made.scales, 9, b"\x7f")
    paths = [str(m.write(tmp_path / n)) for n, m in (("whole", model), ("hurt", hurt), ("twice", twice))]
    for a, b in ((paths[0], paths[1]), (paths[1], paths[0])):
        row = by_name(compare_checkpoints(a, b))[made.codes]
        assert row.found.broken == 16
        assert math.isnan(row.sums.mse)
        assert math.isnan(row.sums.sqnr)
        assert row.fails(None, None)
        assert row.fails(1e9, -1e9)
        assert (row.worst[0].error, row.worst[0].rows[0]) == (math.inf, 3 // 4)
    row = by_name(compare_checkpoints(paths[1], paths[1]))[made.codes]
    assert (row.found.incomparable, row.found.broken, row.sums.mse) == (16, 0, 0)
    assert row.found.exact == row.found.blocks - 1
    assert not row.fails(0, 1e9)
    row = by_name(compare_checkpoints(paths[1], paths[2]))[made.codes]
    assert (row.found.incomparable, row.found.broken) == (16, 16)


def test_floats_that_differ_in_one_piece_only(tmp_path, monkeypatch):
    """Equal pieces are not looked at closely, but their signal counts where another piece differs."""
    monkeypatch.setattr(distance_read, "PIECE", 64)
    w = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    v = w.copy()
    v[7, 3] += 1
    nan = w.copy()
    nan[1, 1] = np.nan
    paths = [
        folder(tmp_path / n, {"model.embed_tokens.weight": raw("F32", x)}) for n, x in (("w", w), ("v", v), ("n", nan))
    ]
    (row,) = compare_checkpoints(paths[0], paths[1]).tensors
    check(row, w[None].astype(np.float64), v[None].astype(np.float64), (1, 32))
    (block,) = row.worst
    assert (block.rows, block.columns, block.scale) == ((7, 8), (0, 32), None)
    assert (row.found.exact, row.found.blocks) == (19, 20)
    (row,) = compare_checkpoints(paths[2], paths[2]).tensors
    assert (row.found.incomparable, row.found.exact, row.sums.count) == (1, 19, 639)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n.startswith("int-") or "svd" in n])
def test_layouts_that_are_not_compared(tmp_path, name):
    model = forge.make(name)
    a, b = source(tmp_path / "a", name), str(model.write(tmp_path / "b"))
    for one, other in ((a, b), (b, a)):
        found = compare_checkpoints(one, other)
        listed = {u.tensor for u in found.unmatched if u.side == "B"}
        arch = ARCHITECTURES[LAYOUTS[name].architecture]
        quantised = {m.name for m in model.layers}
        codes = (
            {m.codes for m in model.layers}
            if other == b
            else {x.plain_name for x in arch.linears if x.name in quantised}
        )
        assert listed >= codes
        assert not {t.tensor for t in found.tensors} & codes
        assert found.tensors  # norms, embeddings
        assert all("not compared" in u.reason for u in found.unmatched if u.tensor in codes)


def test_awq_folded_into_the_norm_is_not_compared(tmp_path):
    model = forge.make("modelopt-awq").copy()
    gone = model.layers[0].pre_quant
    del model.tensors[gone]
    a, b = source(tmp_path / "a", "modelopt-awq"), str(model.write(tmp_path / "b"))
    (left,) = compare_checkpoints(a, b).unmatched
    assert (left.side, left.tensor) == ("B", model.layers[0].codes)
    assert "folded" in left.reason


def test_missing_misshapen_and_unexplained(tmp_path):
    w = np.ones((16, 32), np.float32)
    at = "model.layers.0.mlp"
    a = {
        f"{at}.gate_proj.weight": raw("F32", w),
        f"{at}.up_proj.weight": raw("F32", w),
        "model.norm.weight": raw("F32", w[0]),
    }
    b = {
        f"{at}.gate_proj.weight": raw("F32", w[:8]),
        f"{at}.down_proj.weight": raw("F32", w),
        "model.norm.weight": raw("F32", w[0]),
        "model.odd": raw("U8", np.zeros(3)),
        "model.wide": raw("F64", w),
        "model.position_ids": raw("I64", np.arange(4)),
    }
    found = compare_checkpoints(folder(tmp_path / "a", a), folder(tmp_path / "b", b))
    assert [t.tensor for t in found.tensors] == ["model.norm.weight"]
    told = {(u.side, u.tensor): u.reason for u in found.unmatched}
    assert "shape [16, 32]" in told["B", f"{at}.gate_proj.weight"] or "[8, 32]" in told["B", f"{at}.gate_proj.weight"]
    assert told.keys() == {
        ("B", f"{at}.gate_proj.weight"), ("B", f"{at}.down_proj.weight"), ("A", f"{at}.up_proj.weight"),
        ("B", "model.odd"), ("B", "model.wide"),
    }  # fmt: skip
    assert found.ignored["buffers"] == 1


def test_rows_that_only_the_source_has(tmp_path):
    """B lost expert 2 of a fused tensor's three: A's tensor is only partly accounted for."""
    paths = _gpt_oss(tmp_path)
    file = Path(paths["apart"]) / "model.safetensors"
    kept = {n: t for n, t in _tensors(Path(paths["apart"])).items() if ".experts.2." not in n}
    file.write_bytes(shard_bytes(kept))
    found = compare_checkpoints(paths["mxfp4"], paths["apart"])
    assert {u.side for u in found.unmatched} == {"A"}
    told = {u.tensor.rpartition(".")[2]: u.reason for u in found.unmatched}
    assert told["gate_up_proj_blocks"] == "B has only 192 of its 288 rows"
    assert len(told) == 4


def test_include_and_exclude(tmp_path):
    path = str(forge.make("modelopt-nvfp4").write(tmp_path / "b"))
    found = compare_checkpoints(path, path, include=["*.mlp.*"], exclude=["*down_proj*"])
    assert {t.tensor.split(".")[-2] for t in found.tensors} == {"gate_proj", "up_proj"}
    assert not compare_checkpoints(path, path, include=["nothing"]).tensors


def test_progress_goes_up_to_the_end(tmp_path):
    path = str(forge.make("modelopt-nvfp4").write(tmp_path / "b"))
    seen: list[tuple[int, int]] = []
    found = compare_checkpoints(path, path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {found.bytes_compared}
    assert seen[-1][0] >= 0.99 * found.bytes_compared


def test_hostile_files(tmp_path):
    good = str(forge.make("modelopt-nvfp4").write(tmp_path / "good"))
    with pytest.raises(CheckpointError):
        compare_checkpoints(good, str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError):
        compare_checkpoints(str(tmp_path / "nowhere"), good)
    bad = forge.make("modelopt-nvfp4").write(tmp_path / "bad")
    file = bad / "model.safetensors"
    content = file.read_bytes()
    for cut in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        for a, b in ((good, str(bad)), (str(bad), good)):
            assert compare_checkpoints(a, b).unread
    file.write_bytes(content[:8] + b"\xff" * 50 + content[58:])
    assert compare_checkpoints(good, str(bad)).unread
    assert not compare_checkpoints(good, str(bad)).tensors


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    good = str(forge.make("modelopt-nvfp4").write(tmp_path / "good"))
    bad = forge.make("modelopt-nvfp4").write(tmp_path / "bad")
    real = distance.pair_up

    def shrink(a, b):
        found = real(a, b)
        file = bad / "model.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return found

    monkeypatch.setattr(distance, "pair_up", shrink)
    found = compare_checkpoints(good, str(bad))
    assert found.unread
    assert found.tensors
    assert len(found.unread) + len(found.tensors) == len(compare_checkpoints(good, good).tensors)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NUMBERS), data=st.data())
def test_any_shape_and_any_byte(tmp_path_factory, name, data):
    """A tensor of another shape or with other bytes: a result or a listed reason, never an exception."""
    model = forge.make(name).copy()
    tensor = data.draw(st.sampled_from(sorted(model.tensors)))
    if data.draw(st.booleans()):
        shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 16, 32, 64]), max_size=4))
        model.reshape(tensor, tuple(shape))
    else:
        model.fill(tensor, data.draw(st.sampled_from([0, 0x7F, 0x80, 0xFF])))
    root = tmp_path_factory.mktemp("any")
    good, bad = str(forge.make(name).write(root / "good")), str(model.write(root / "bad"))
    for a, b in ((good, bad), (bad, good)):
        found = compare_checkpoints(a, b)
        names = {t.tensor for t in found.tensors} | {u.tensor for u in (*found.unmatched, *found.unread)}
        assert names


EXPORTS = Path(__file__).parents[1] / "data" / "exports"


@pytest.mark.parametrize(
    ("export", "low", "high"),
    [
        ("llama_nvfp4", 20, 21), ("llmc_llama_nvfp4", 20, 21), ("llama_nvfp4_mse", 21, 22.5), ("llama_fp8", 31, 32),
        ("llama_mxfp8", 31, 32), ("llama_mxfp4", 18, 19.5), ("llama_w4a8_nvfp4_fp8", 19, 20.5),
        ("llama_fp8_pb_wo", 31, 32), ("llama_fp8_pc_pt", 31, 32.5), ("quark_llama_nvfp4", 20, 21),
    ],
)  # fmt: skip
def test_real_exports_against_their_source(export, low, high):
    found = compare_checkpoints(str(EXPORTS / "llama_nvfp4__source"), str(EXPORTS / export))
    assert low < found.total.sums.sqnr < high
    assert not [u for u in found.unmatched if u.side == "B"]
    assert not found.unread


def test_a_converter_changes_nothing_but_rounding():
    found = compare_checkpoints(str(EXPORTS / "llama_nvfp4"), str(EXPORTS / "ctconv_llama_nvfp4"))
    assert found.total.blocks
    assert found.total.exact + found.total.rounding == found.total.blocks
    assert found.total.sums.sqnr > 130
